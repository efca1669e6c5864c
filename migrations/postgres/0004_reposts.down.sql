ALTER TABLE refusals DROP COLUMN attempts;
ALTER TABLE calls DROP COLUMN fingerprint;
