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
    moved_at  BIGINT NOT NULL
);
INSERT INTO gate_state (pool, epoch, mode, moved_at) VALUES ('default', 1, 'memory', 0);

-- What rates have given out, while the database decides: theoretical arrival times in microseconds.
CREATE TABLE gate_rates (
    key         TEXT COLLATE "C" PRIMARY KEY,
    arrival_us  BIGINT NOT NULL
);
