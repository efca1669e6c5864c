-- What a call cost in money, where its provider also counts in credits of its own.
ALTER TABLE call_records ADD COLUMN cost_fiat REAL;
