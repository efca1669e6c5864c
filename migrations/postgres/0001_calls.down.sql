DROP TABLE holders;
DROP TABLE businesses;
DROP TABLE refusals;
DROP TABLE deliveries;
DROP TABLE webhook_events;
DROP TABLE call_aliases;
DROP TABLE calls;
