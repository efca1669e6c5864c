ALTER TABLE replicas DROP COLUMN state;
