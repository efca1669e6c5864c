DROP INDEX calls_ended;
