-- What a provider tells of a call after its end. Apart from calls, which stay narrow for the gate. Nothing of it need be there.
CREATE TABLE call_records (
    call_id                TEXT COLLATE "C" PRIMARY KEY,
    transcript_summary     TEXT,
    call_duration_seconds  BIGINT,
    cost                   DOUBLE PRECISION,
    cost_unit              TEXT,
    call_successful        BOOLEAN,
    analysis_data          TEXT,                -- JSON
    metadata_json          TEXT,                -- JSON
    call_end_time          BIGINT,
    transcript_json        TEXT,                -- JSON
    recorded_at            BIGINT,             -- when the provider had told all
    recorded_by            TEXT,                -- webhook, poll, operator
    tries                  BIGINT NOT NULL DEFAULT 0,
    due_at                 BIGINT,             -- when it is asked for
    last_error             TEXT
);
CREATE INDEX call_records_due ON call_records (due_at) WHERE due_at IS NOT NULL;

-- A webhook that cannot be applied is tried a few times, and then parked. One that tells of a call nobody knows yet waits for an id.
ALTER TABLE webhook_events ADD COLUMN tries BIGINT NOT NULL DEFAULT 0;
ALTER TABLE webhook_events ADD COLUMN due_at BIGINT;
ALTER TABLE webhook_events ADD COLUMN parked_at BIGINT;
ALTER TABLE webhook_events ADD COLUMN error TEXT;
ALTER TABLE webhook_events ADD COLUMN waits_kind TEXT COLLATE "C";
ALTER TABLE webhook_events ADD COLUMN waits_id TEXT COLLATE "C";
CREATE INDEX webhook_events_waiting ON webhook_events (waits_kind, waits_id) WHERE waits_id IS NOT NULL;
CREATE INDEX webhook_events_parked ON webhook_events (parked_at) WHERE parked_at IS NOT NULL;
CREATE INDEX webhook_events_of ON webhook_events (call_id) WHERE call_id IS NOT NULL;

-- Events of our own go the way of webhooks: with no URL, to app.events_url.
ALTER TABLE deliveries ADD COLUMN own BOOLEAN NOT NULL DEFAULT false;
ALTER TABLE deliveries ADD COLUMN noted_at BIGINT;
CREATE INDEX deliveries_event ON deliveries (event_id);
CREATE INDEX deliveries_call ON deliveries (call_id) WHERE call_id IS NOT NULL;

-- What operators did.
CREATE TABLE audit (
    id      TEXT COLLATE "C" PRIMARY KEY,
    at      BIGINT NOT NULL,
    who     TEXT NOT NULL,
    what    TEXT NOT NULL,
    target  TEXT NOT NULL,
    reason  TEXT
);
CREATE INDEX audit_at ON audit (at);
