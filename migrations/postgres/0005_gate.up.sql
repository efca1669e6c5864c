-- An open call's row is its lease: the counts that it is in. Without them it was written by an older version, and is in none until
-- the gate is moved. And which replica put it on record.
ALTER TABLE calls ADD COLUMN keys TEXT[];
ALTER TABLE calls ADD COLUMN replica TEXT;

-- Who decides, under which epoch. Every write that admits a call locks its pool's row; a move changes it, and so waits for those
-- under way and makes all later ones of the old epoch fail.
CREATE TABLE gate_state (
    pool      TEXT COLLATE "C" PRIMARY KEY,
    epoch     BIGINT NOT NULL,
    mode      TEXT NOT NULL,
    moved_at  BIGINT NOT NULL,
    database  TEXT NOT NULL     -- what a gate elsewhere names its keys by: another record, another gate
);
INSERT INTO gate_state (pool, epoch, mode, moved_at, database)
    VALUES ('default', 1, 'memory', 0, left(replace(gen_random_uuid()::text, '-', ''), 16));

-- What rates have let through, while the database decides: `HELD;AT:CREATES,AT:CREATES`, in milliseconds.
CREATE TABLE gate_rates (
    key  TEXT COLLATE "C" PRIMARY KEY,
    log  TEXT NOT NULL
);
