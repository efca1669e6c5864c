-- An open call's row is its lease: the counts that it is in, as JSON. Without them it was written by an older version, and is in
-- none until the gate is moved. And which replica put it on record.
ALTER TABLE calls ADD COLUMN keys TEXT;
ALTER TABLE calls ADD COLUMN replica TEXT;

-- Who decides, under which epoch. A call is put on record only under the epoch that stands here.
CREATE TABLE gate_state (
    pool      TEXT PRIMARY KEY,
    epoch     INTEGER NOT NULL,
    mode      TEXT NOT NULL,
    moved_at  INTEGER NOT NULL,
    database  TEXT NOT NULL     -- what a gate elsewhere names its keys by: another record, another gate
) STRICT;
INSERT INTO gate_state (pool, epoch, mode, moved_at, database) VALUES ('default', 1, 'memory', 0, lower(hex(randomblob(8))));

-- What rates have let through, while the database decides: `HELD;AT:CREATES,AT:CREATES`, in milliseconds.
CREATE TABLE gate_rates (
    key  TEXT PRIMARY KEY,
    log  TEXT NOT NULL
) STRICT, WITHOUT ROWID;
