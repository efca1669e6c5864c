-- What was said in calls. The numbers of a call's utterances have no gaps, from 1: the row of its transcript says the last one.
CREATE TABLE transcripts (
    call_id        TEXT PRIMARY KEY,
    last_sequence  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE utterances (
    id               INTEGER PRIMARY KEY AUTOINCREMENT,
    call_id          TEXT NOT NULL,
    sequence         INTEGER NOT NULL,
    event_id         TEXT NOT NULL UNIQUE,      -- the webhook that brought it: applied again, it is the same utterance
    speaker          TEXT NOT NULL,
    message          TEXT NOT NULL,
    said_at          TEXT NOT NULL,             -- as its sender wrote it
    source_sequence  INTEGER,                   -- its number at the provider
    heard_at         INTEGER NOT NULL,
    redacted         INTEGER NOT NULL DEFAULT 0,      -- what it said is kept no longer (privacy.transcripts)
    UNIQUE (call_id, sequence)
) STRICT;
CREATE INDEX utterances_kept ON utterances (call_id) WHERE redacted = 0;
