DROP INDEX calls_fingerprint;
ALTER TABLE calls DROP COLUMN undelivered;
DROP INDEX webhook_events_unsettled;
DROP INDEX deliveries_of;
ALTER TABLE deliveries DROP COLUMN taken_until;
ALTER TABLE deliveries DROP COLUMN call_id;
DROP TABLE replicas;
