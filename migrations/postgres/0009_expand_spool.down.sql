-- Without its body a delivery must not be made.
DELETE FROM deliveries WHERE spool IS NOT NULL;
ALTER TABLE deliveries DROP COLUMN spool;
ALTER TABLE webhook_events DROP COLUMN spool;
