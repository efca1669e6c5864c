DROP INDEX refusals_of;
DROP INDEX calls_ended_of;
