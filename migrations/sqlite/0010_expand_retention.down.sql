ALTER TABLE utterances DROP COLUMN source;
DROP INDEX refusals_of;
DROP INDEX calls_ended_of;
