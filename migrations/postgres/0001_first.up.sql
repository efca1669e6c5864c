-- Calls, from admission to end. The primary key is the lease id in the gate: a call without a row was never admitted.
-- Times are milliseconds since 1970-01-01 UTC. The columns business to other_number are the attributes that policy selects by.
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
    over_limit       BOOLEAN NOT NULL DEFAULT false,   -- exists although it was refused, or ended for us
    unsettled     BOOLEAN NOT NULL DEFAULT false,   -- the create's outcome is unknown
    exchange_over BOOLEAN NOT NULL DEFAULT false,   -- the exchange of its create is over, and its outcome unknown: nothing is being carried out
    polled        BOOLEAN NOT NULL DEFAULT false,   -- no event will tell of it
    slots        BIGINT NOT NULL DEFAULT 1,       -- that its lease holds: 1, or as many calls as a batch may have at once
    admitted_at   BIGINT NOT NULL,
    phase_at      BIGINT NOT NULL,
    deadline_at   BIGINT,                          -- past it the call is due for a look-up; it frees nothing
    answered_at   BIGINT,
    ended_at      BIGINT,
    seen_at       BIGINT NOT NULL,
    seen_by       TEXT NOT NULL,
    absent_at     BIGINT,                          -- when a look-up first found nothing
    callback      TEXT,                           -- the app's own status callback, as JSON
    fingerprint   TEXT,                           -- what makes two orders equal
    replica       TEXT,                           -- the one that put it on record, or answers for its order since
    taken_at      BIGINT,                         -- when another request took the place of its order's client
    keys          TEXT[],                           -- the counts that it is in: with these an open call's row is its lease
    undelivered   BOOLEAN NOT NULL DEFAULT false    -- its order's client had gone before it was answered
);
CREATE INDEX calls_open ON calls (account) WHERE phase <> 'ended';
CREATE INDEX calls_admitted ON calls (admitted_at);
CREATE INDEX calls_fingerprint ON calls (fingerprint, admitted_at) WHERE fingerprint IS NOT NULL;
-- Calls past their retention are found without reading the others; each business may have a retention of its own.
CREATE INDEX calls_ended ON calls (ended_at) WHERE phase = 'ended';
CREATE INDEX calls_ended_of ON calls (business, ended_at) WHERE phase = 'ended';

-- What a provider answered to a create, for whoever sends the order again. It goes after a day, and with its call.
CREATE TABLE create_answers (
    call_id      TEXT COLLATE "C" NOT NULL,
    fingerprint  TEXT COLLATE "C" NOT NULL,
    status       BIGINT NOT NULL,
    headers      TEXT NOT NULL,                 -- JSON: names and values
    body         BYTEA NOT NULL,
    at           BIGINT NOT NULL,
    PRIMARY KEY (call_id, fingerprint)
);
CREATE INDEX create_answers_at ON create_answers (at);

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

-- The inbox: every webhook, before it is answered. One that cannot be applied is tried a few times, and then parked. One that tells
-- of a call nobody knows yet waits for an id.
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
    spool        TEXT,      -- a body too large for the record is a file, named by the id, in the folder of this name at who took it
    call_id      TEXT COLLATE "C",
    outcome      TEXT,
    tries        BIGINT NOT NULL DEFAULT 0,
    due_at       BIGINT,
    parked_at    BIGINT,
    error        TEXT,
    park_reason  TEXT,
    waits_kind   TEXT COLLATE "C",
    waits_id     TEXT COLLATE "C"
);
CREATE INDEX webhook_events_received ON webhook_events (received_at);
-- Webhooks that nobody has settled are looked for all the time.
CREATE INDEX webhook_events_unsettled ON webhook_events (received_at) WHERE outcome IS NULL;
CREATE INDEX webhook_events_waiting ON webhook_events (waits_kind, waits_id) WHERE waits_id IS NOT NULL;
CREATE INDEX webhook_events_parked ON webhook_events (parked_at) WHERE parked_at IS NOT NULL;
CREATE INDEX webhook_events_of ON webhook_events (call_id) WHERE call_id IS NOT NULL;

-- The outbox: what the app still has to be told. Those of a call go in the order in which they were noted.
CREATE TABLE deliveries (
    seq          BIGINT GENERATED ALWAYS AS IDENTITY,
    id           TEXT COLLATE "C" PRIMARY KEY,
    event_id     TEXT COLLATE "C" NOT NULL,
    url          TEXT NOT NULL,       -- empty for events of our own: they go to app.events_url
    method       TEXT NOT NULL,
    headers      TEXT NOT NULL,
    body         BYTEA,
    attempts     BIGINT NOT NULL DEFAULT 0,
    due_at       BIGINT,
    done_at      BIGINT,
    last_error   TEXT,
    park_reason  TEXT,
    call_id      TEXT COLLATE "C",
    taken_until  BIGINT,               -- who sends it takes it for a while, by the database's time
    own          BOOLEAN NOT NULL DEFAULT false,
    noted_at     BIGINT,
    spool        TEXT,
    -- To where the operator's config says (app); to an address that an app chose, over the network (callback); to such an address that
    -- is the app's own, and therefore to app.forward_url (forwarded).
    route        TEXT NOT NULL DEFAULT 'app'
);
CREATE INDEX deliveries_due ON deliveries (due_at) WHERE done_at IS NULL AND due_at IS NOT NULL;
CREATE INDEX deliveries_of ON deliveries (call_id, seq) WHERE done_at IS NULL AND due_at IS NOT NULL;
CREATE INDEX deliveries_event ON deliveries (event_id);
CREATE INDEX deliveries_call ON deliveries (call_id) WHERE call_id IS NOT NULL;

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
    observed       BOOLEAN NOT NULL DEFAULT false,  -- would have been refused; the mode was observe
    attempts       BIGINT NOT NULL DEFAULT 1
);
CREATE INDEX refusals_at ON refusals (at);
CREATE INDEX refusals_of ON refusals (business, at);

-- Businesses that were put over HTTP; the body of the PUT.
CREATE TABLE businesses (
    id          TEXT COLLATE "C" PRIMARY KEY,
    body        TEXT NOT NULL,
    updated_at  BIGINT NOT NULL
);

-- Numbers that are not called. Changes are counted over all lists, and every row has the number of its own last one, so that a
-- replica reads what it has not seen yet. A number that is taken off a list stays for a while, for the same reason.
CREATE TABLE do_not_call (
    list        TEXT COLLATE "C" NOT NULL,                -- a business; '' is everybody's
    number      BIGINT NOT NULL,                 -- the digits of its E.164 form
    change      BIGINT NOT NULL UNIQUE,
    listed      BOOLEAN NOT NULL,
    reason      TEXT,
    changed_at  BIGINT NOT NULL,
    PRIMARY KEY (list, number)
);
CREATE INDEX do_not_call_lists ON do_not_call (list, change) WHERE listed;
CREATE INDEX do_not_call_gone ON do_not_call (changed_at) WHERE NOT listed;

-- How many changes there were: one row, which every change locks first, so that nobody sees a later one before an earlier one.
CREATE TABLE do_not_call_changes (
    pool  TEXT COLLATE "C" PRIMARY KEY,
    last  BIGINT NOT NULL
);
INSERT INTO do_not_call_changes (pool, last) VALUES ('default', 0);

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

-- While it lasts limits refuse nothing, at every replica. No row: it is off.
CREATE TABLE bypass (
    pool      TEXT COLLATE "C" PRIMARY KEY,
    since_ms  BIGINT NOT NULL,
    until_ms  BIGINT NOT NULL,
    who       TEXT NOT NULL,
    reason    TEXT NOT NULL
);

-- What rates have let through, while the database decides: `HELD;AT:CREATES,AT:CREATES`, in milliseconds.
CREATE TABLE gate_rates (
    key  TEXT COLLATE "C" PRIMARY KEY,
    log  TEXT NOT NULL
);

-- The processes over this record, as each says of itself every few seconds. Times here are the database's.
CREATE TABLE replicas (
    id          TEXT COLLATE "C" PRIMARY KEY,       -- a ULID made at the start: the oldest that lives leads
    host        TEXT NOT NULL,
    process     BIGINT NOT NULL,
    version     TEXT NOT NULL,
    state       TEXT,                   -- what it says of itself to the others, as JSON: its policy, and what it last saw at providers
    started_at  BIGINT NOT NULL,
    beat_at     BIGINT NOT NULL
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

-- What was said in calls. The numbers of a call's utterances have no gaps, from 1: the row of its transcript says the last one,
-- and is locked by whoever gives out the next.
CREATE TABLE transcripts (
    call_id        TEXT COLLATE "C" PRIMARY KEY,
    last_sequence  BIGINT NOT NULL
);

CREATE TABLE utterances (
    id               BIGINT PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    sequence         BIGINT NOT NULL,
    speaker          TEXT NOT NULL,
    message          TEXT NOT NULL,
    said_at          TEXT NOT NULL,             -- as its sender wrote it
    source_sequence  BIGINT,                     -- its number at the provider
    source           TEXT,                      -- what source_sequence is counted in: a provider begins anew with each
    event_id         TEXT COLLATE "C" NOT NULL UNIQUE,      -- the webhook that brought it: applied again, it is the same utterance
    call_id          TEXT COLLATE "C" NOT NULL,
    heard_at         BIGINT NOT NULL,
    redacted         BOOLEAN NOT NULL DEFAULT false,                    -- what it said is kept no longer (privacy.transcripts)
    UNIQUE (call_id, sequence)
);
CREATE INDEX utterances_kept ON utterances (call_id) WHERE NOT redacted;

-- What a provider tells of a call after its end. Apart from calls, which stay narrow for the gate. Nothing of it need be there.
CREATE TABLE call_records (
    call_id                TEXT COLLATE "C" PRIMARY KEY,
    transcript_summary     TEXT,
    call_duration_seconds  BIGINT,
    cost                   DOUBLE PRECISION,
    cost_unit              TEXT,
    cost_fiat              DOUBLE PRECISION,                -- in money, where its provider also counts in credits of its own
    call_successful        BOOLEAN,
    answered_by            TEXT,                -- human, machine, unknown
    analysis_data          TEXT,                -- JSON
    metadata_json          TEXT,                -- JSON
    call_end_time          BIGINT,
    transcript_json        TEXT,                -- JSON
    recorded_at            BIGINT,               -- when the provider had told all
    recorded_by            TEXT,                -- webhook, poll, operator
    tries                  BIGINT NOT NULL DEFAULT 0,
    due_at                 BIGINT,               -- when it is asked for
    last_error             TEXT
);
CREATE INDEX call_records_due ON call_records (due_at) WHERE due_at IS NOT NULL;

-- What operators did.
CREATE TABLE audit (
    id           TEXT COLLATE "C" PRIMARY KEY,
    at           BIGINT NOT NULL,
    who          TEXT NOT NULL,
    came_from    TEXT NOT NULL DEFAULT '',
    what         TEXT NOT NULL,
    target       TEXT NOT NULL,
    reason       TEXT,
    before_json  TEXT,
    after_json   TEXT
);
CREATE INDEX audit_at ON audit (at);

-- Bulk dialling orders. What a run asks for stands in spec, as JSON.
CREATE TABLE runs (
    id               TEXT COLLATE "C" PRIMARY KEY,
    business         TEXT NOT NULL,
    account          TEXT NOT NULL,
    name             TEXT,
    idempotency_key  TEXT COLLATE "C",              -- of a business: the same key is the same run
    digest           TEXT NOT NULL,                 -- of what was asked for: tells a repeated create from another one
    state            TEXT NOT NULL,                 -- loading, ready, running, paused, done, canceled, failed
    spec             TEXT NOT NULL,
    total            BIGINT NOT NULL DEFAULT 0,
    start_at         BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    finished_at      BIGINT,
    resume_at        BIGINT,                       -- of one that a breaker paused
    reason           TEXT,                          -- why it is paused or failed, or running and not dialled
    retries          BIGINT NOT NULL DEFAULT 0,    -- how often its jobs were queued again by hand
    replica          TEXT,                          -- the one that takes its leads in
    load_token       TEXT,                          -- of the last load of its leads
    recent           TEXT NOT NULL DEFAULT '',      -- the latest calls, for its breaker: 1 for one that failed, else 0
    held_until       BIGINT NOT NULL DEFAULT 0     -- its provider is full: nobody is dialled before
);
CREATE UNIQUE INDEX runs_key ON runs (business, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX runs_open ON runs (state) WHERE finished_at IS NULL;
CREATE INDEX runs_finished ON runs (finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX runs_of ON runs (business, id);
CREATE INDEX runs_batches ON runs (account, id) WHERE substr(idempotency_key, 1, 6) = 'batch:';

-- The calls of a run, one a lead: queued, dialing (claimed; its call may not be on record yet), calling (it has a call), done.
CREATE TABLE run_jobs (
    run_id           TEXT COLLATE "C" NOT NULL,
    seq              BIGINT NOT NULL,              -- its lead's place in the list, from 1
    number           TEXT NOT NULL,
    lead             TEXT NOT NULL,                 -- JSON
    state            TEXT NOT NULL DEFAULT 'queued',
    outcome          TEXT,                          -- of the last attempt; the final one of a job that is done
    attempts         BIGINT NOT NULL DEFAULT 0,    -- calls that the provider took
    tries            BIGINT NOT NULL DEFAULT 0,    -- calls on record, those included that the provider refused: names the next one
    unknown_tries    BIGINT NOT NULL DEFAULT 0,    -- the latest of these whose outcome was unknown, for a reason that may be the lead's
    due_at           BIGINT NOT NULL,
    dial_lock_token  TEXT,
    replica          TEXT,                          -- the one that has claimed it
    changed_at       BIGINT,                        -- its last claim, or what became of it; null: it was never claimed
    call_id          TEXT,                          -- while it is calling, and of the last call of one that is done
    error            TEXT,
    settled_at       BIGINT,
    waits_until      BIGINT,                       -- its call has ended, and until then it waits for the word who answered; 0: that has come
    PRIMARY KEY (run_id, seq)
);
CREATE INDEX run_jobs_due ON run_jobs (run_id, due_at, seq) WHERE state = 'queued';
-- The open ones, and apart from them those that wait for a word: these may be many, and none is read before its time.
CREATE INDEX run_jobs_open ON run_jobs (state, run_id) WHERE state IN ('dialing', 'calling') AND waits_until IS NULL;
CREATE INDEX run_jobs_waiting ON run_jobs (run_id) WHERE waits_until IS NOT NULL;
CREATE INDEX run_jobs_waits ON run_jobs (waits_until) WHERE waits_until IS NOT NULL;
-- Without the queued ones: right after a load, before its statistics are known, Postgres would claim by this index, and read all of them.
CREATE INDEX run_jobs_counts ON run_jobs (run_id, state, outcome) WHERE state <> 'queued';
CREATE INDEX run_jobs_changed ON run_jobs (run_id, changed_at, seq) WHERE changed_at IS NOT NULL;
CREATE INDEX run_jobs_call ON run_jobs (call_id) WHERE call_id IS NOT NULL;

-- Recurring runs. What a schedule asks for stands in spec, as JSON; each firing makes a run whose key names it.
CREATE TABLE schedules (
    id               TEXT COLLATE "C" PRIMARY KEY,
    business         TEXT NOT NULL,
    name             TEXT NOT NULL,
    spec             TEXT NOT NULL,
    state            TEXT NOT NULL,                 -- active, paused
    done_at          BIGINT NOT NULL,              -- all firings up to this time were made, or left out
    next_at          BIGINT,                       -- when there is something to do; null: nothing ever again
    failing_at       BIGINT,                       -- the firing that is tried again
    tries            BIGINT NOT NULL DEFAULT 0,    -- of that
    error            TEXT,                          -- why it failed last
    fired_at         BIGINT,                       -- the last firing that was made
    run_id           TEXT,                          -- its run; null: there were no leads
    note             TEXT,                          -- leads that were left out of it
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    version          BIGINT NOT NULL DEFAULT 0     -- goes up with every change
);
CREATE UNIQUE INDEX schedules_name ON schedules (business, name);
CREATE INDEX schedules_due ON schedules (next_at) WHERE state = 'active';
