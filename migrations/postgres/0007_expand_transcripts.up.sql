-- What was said in calls. The numbers of a call's utterances have no gaps, from 1: the row of its transcript says the last one,
-- and is locked by whoever gives out the next.
CREATE TABLE transcripts (
    call_id        TEXT COLLATE "C" PRIMARY KEY,
    last_sequence  BIGINT NOT NULL
);

CREATE TABLE utterances (
    id               BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    call_id          TEXT COLLATE "C" NOT NULL,
    sequence         BIGINT NOT NULL,
    event_id         TEXT COLLATE "C" NOT NULL UNIQUE,      -- the webhook that brought it: applied again, it is the same utterance
    speaker          TEXT NOT NULL,
    message          TEXT NOT NULL,
    said_at          TEXT NOT NULL,             -- as its sender wrote it
    source_sequence  BIGINT,                      -- its number at the provider
    heard_at         BIGINT NOT NULL,
    redacted         BOOLEAN NOT NULL DEFAULT false,      -- what it said is kept no longer (privacy.transcripts)
    UNIQUE (call_id, sequence)
);
CREATE INDEX utterances_kept ON utterances (call_id) WHERE NOT redacted;
