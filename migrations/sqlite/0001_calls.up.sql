-- Calls, from admission to end. The primary key is the lease id in the gate: a call without a row was never admitted.
-- Times are milliseconds since 1970-01-01 UTC. The columns business to other_number are the facts that policy selects by.
CREATE TABLE calls (
    id            TEXT PRIMARY KEY,
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
    overrun       INTEGER NOT NULL DEFAULT 0,   -- exists although it was refused, or ended for us
    unsettled     INTEGER NOT NULL DEFAULT 0,   -- the create's outcome is unknown
    polled        INTEGER NOT NULL DEFAULT 0,   -- no event will tell of it
    admitted_at   INTEGER NOT NULL,
    phase_at      INTEGER NOT NULL,
    deadline_at   INTEGER,                      -- past it the call is due for a look-up; it frees nothing
    answered_at   INTEGER,
    ended_at      INTEGER,
    seen_at       INTEGER NOT NULL,
    seen_by       TEXT NOT NULL,
    absent_at     INTEGER,                      -- when a look-up first found nothing
    callback      TEXT                          -- the app's own status callback, as JSON
) STRICT;
CREATE INDEX calls_open ON calls (account) WHERE phase <> 'ended';
CREATE INDEX calls_admitted ON calls (admitted_at);

-- The ids by which calls are known outside. A row without a call is news of a call that is not known yet: whoever comes
-- second, the news or the call, finds the other here.
CREATE TABLE call_aliases (
    kind     TEXT NOT NULL,
    id       TEXT NOT NULL,
    call_id  TEXT,
    early    TEXT,
    seen_at  INTEGER NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX call_aliases_of ON call_aliases (call_id);
CREATE INDEX call_aliases_early ON call_aliases (seen_at) WHERE call_id IS NULL;

-- The inbox: every webhook, before it is answered.
CREATE TABLE webhook_events (
    id           TEXT PRIMARY KEY,
    account      TEXT NOT NULL,
    webhook      TEXT NOT NULL,
    event        TEXT NOT NULL,
    dedupe_key   TEXT UNIQUE,
    received_at  INTEGER NOT NULL,
    method       TEXT NOT NULL,
    path         TEXT NOT NULL,
    headers      TEXT NOT NULL,
    body         BLOB,
    call_id      TEXT,
    outcome      TEXT
) STRICT;
CREATE INDEX webhook_events_received ON webhook_events (received_at);

-- The outbox: what the app still has to be told.
CREATE TABLE deliveries (
    id          TEXT PRIMARY KEY,
    event_id    TEXT NOT NULL,
    url         TEXT NOT NULL,
    method      TEXT NOT NULL,
    headers     TEXT NOT NULL,
    body        BLOB,
    attempts    INTEGER NOT NULL DEFAULT 0,
    due_at      INTEGER,
    done_at     INTEGER,
    last_error  TEXT
) STRICT;
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE done_at IS NULL AND due_at IS NOT NULL;

CREATE TABLE refusals (
    id             TEXT PRIMARY KEY,
    at             INTEGER NOT NULL,
    business       TEXT NOT NULL,
    account        TEXT NOT NULL,
    direction      TEXT NOT NULL,
    code           TEXT NOT NULL,
    limit_name     TEXT,
    current_calls  INTEGER,
    limit_calls    INTEGER,
    observed       INTEGER NOT NULL DEFAULT 0   -- would have been refused; the mode was observe
) STRICT;
CREATE INDEX refusals_at ON refusals (at);

-- Businesses that were put over HTTP; the body of the PUT.
CREATE TABLE businesses (
    id          TEXT PRIMARY KEY,
    body        TEXT NOT NULL,
    updated_at  INTEGER NOT NULL
) STRICT;
