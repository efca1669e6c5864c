-- A body that is too large for the record stands in a folder of the machine that took it: the name of that folder. The file has the
-- webhook's id as its name.
ALTER TABLE webhook_events ADD COLUMN spool TEXT;
ALTER TABLE deliveries ADD COLUMN spool TEXT;
