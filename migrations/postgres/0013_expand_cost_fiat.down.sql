ALTER TABLE call_records DROP COLUMN cost_fiat;
