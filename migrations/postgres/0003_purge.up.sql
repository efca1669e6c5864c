-- Calls past their retention are found without reading the others.
CREATE INDEX calls_ended ON calls (ended_at) WHERE phase = 'ended';
