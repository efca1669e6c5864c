DROP TABLE gate_rates;
DROP TABLE gate_state;
ALTER TABLE calls DROP COLUMN replica;
ALTER TABLE calls DROP COLUMN keys;
