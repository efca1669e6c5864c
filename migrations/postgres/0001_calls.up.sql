-- Calls, from admission to end. The primary key is the lease id in the gate: a call without a row was never admitted.
-- Times are milliseconds since 1970-01-01 UTC. The columns business to other_number are the facts that policy selects by.
-- Ids are compared by their bytes, whatever the database's collation.
CREATE TABLE calls (
    id            TEXT COLLATE "C" PRIMARY KEY,
    business      TEXT NOT NULL,
    plan          TEXT NOT NULL,
    account       TEXT NOT NULL,
    provider      TEXT NOT NULL,
    carrier       TEXT,
    direction     TEXT NOT NULL,
    operation     TEXT NOT NULL,
    agent         TEXT,
    own_number    TEXT,
    other_number  TEXT,
    origin        TEXT NOT NULL,
    phase         TEXT NOT NULL,
    outcome       TEXT,
    proof         TEXT,
    overrun       BOOLEAN NOT NULL DEFAULT false,   -- exists although it was refused, or ended for us
    unsettled     BOOLEAN NOT NULL DEFAULT false,   -- the create's outcome is unknown
    polled        BOOLEAN NOT NULL DEFAULT false,   -- no event will tell of it
    admitted_at   BIGINT NOT NULL,
    phase_at      BIGINT NOT NULL,
    deadline_at   BIGINT,                           -- past it the call is due for a look-up; it frees nothing
    answered_at   BIGINT,
    ended_at      BIGINT,
    seen_at       BIGINT NOT NULL,
    seen_by       TEXT NOT NULL,
    absent_at     BIGINT,                           -- when a look-up first found nothing
    callback      TEXT                              -- the app's own status callback, as JSON
);
CREATE INDEX calls_open ON calls (account) WHERE phase <> 'ended';
CREATE INDEX calls_admitted ON calls (admitted_at);

-- The ids by which calls are known outside. A row without a call is news of a call that is not known yet: whoever comes
-- second, the news or the call, finds the other here.
CREATE TABLE call_aliases (
    kind     TEXT COLLATE "C" NOT NULL,
    id       TEXT COLLATE "C" NOT NULL,
    call_id  TEXT COLLATE "C",
    early    TEXT,
    seen_at  BIGINT NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE INDEX call_aliases_of ON call_aliases (call_id);
CREATE INDEX call_aliases_early ON call_aliases (seen_at) WHERE call_id IS NULL;

-- The inbox: every webhook, before it is answered.
CREATE TABLE webhook_events (
    id           TEXT COLLATE "C" PRIMARY KEY,
    account      TEXT NOT NULL,
    webhook      TEXT NOT NULL,
    event        TEXT NOT NULL,
    dedupe_key   TEXT COLLATE "C" UNIQUE,
    received_at  BIGINT NOT NULL,
    method       TEXT NOT NULL,
    path         TEXT NOT NULL,
    headers      TEXT NOT NULL,
    body         BYTEA,
    call_id      TEXT COLLATE "C",
    outcome      TEXT
);
CREATE INDEX webhook_events_received ON webhook_events (received_at);

-- The outbox: what the app still has to be told.
CREATE TABLE deliveries (
    id          TEXT COLLATE "C" PRIMARY KEY,
    event_id    TEXT COLLATE "C" NOT NULL,
    url         TEXT NOT NULL,
    method      TEXT NOT NULL,
    headers     TEXT NOT NULL,
    body        BYTEA,
    attempts    BIGINT NOT NULL DEFAULT 0,
    due_at      BIGINT,
    done_at     BIGINT,
    last_error  TEXT
);
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE done_at IS NULL AND due_at IS NOT NULL;

CREATE TABLE refusals (
    id             TEXT COLLATE "C" PRIMARY KEY,
    at             BIGINT NOT NULL,
    business       TEXT NOT NULL,
    account        TEXT NOT NULL,
    direction      TEXT NOT NULL,
    code           TEXT NOT NULL,
    limit_name     TEXT,
    current_calls  BIGINT,
    limit_calls    BIGINT,
    observed       BOOLEAN NOT NULL DEFAULT false   -- would have been refused; the mode was observe
);
CREATE INDEX refusals_at ON refusals (at);

-- Businesses that were put over HTTP; the body of the PUT.
CREATE TABLE businesses (
    id          TEXT COLLATE "C" PRIMARY KEY,
    body        TEXT NOT NULL,
    updated_at  BIGINT NOT NULL
);

-- Which process has the record: one row. Every write of that process locks it by its generation (FOR KEY SHARE). Taking the
-- record over changes the generation, a key, and so waits for writes under way and makes all later ones of the old holder
-- fail. A beat changes no key and waits for nobody. Times here are the database's.
CREATE TABLE holders (
    gate        TEXT COLLATE "C" PRIMARY KEY,
    generation  BIGINT NOT NULL UNIQUE,
    process     BIGINT NOT NULL,
    host        TEXT NOT NULL,
    place       TEXT NOT NULL,                      -- boot, process namespace and start time: where its death can be seen
    since       BIGINT NOT NULL,
    beat_at     BIGINT                              -- null: it was given up
);
