-- What a provider tells of a call after its end. Apart from calls, which stay narrow for the gate. Nothing of it need be there.
CREATE TABLE call_records (
    call_id                TEXT PRIMARY KEY,
    transcript_summary     TEXT,
    call_duration_seconds  INTEGER,
    cost                   REAL,
    cost_unit              TEXT,
    call_successful        INTEGER,
    analysis_data          TEXT,                -- JSON
    metadata_json          TEXT,                -- JSON
    call_end_time          INTEGER,
    transcript_json        TEXT,                -- JSON
    recorded_at            INTEGER,             -- when the provider had told all
    recorded_by            TEXT,                -- webhook, poll, operator
    tries                  INTEGER NOT NULL DEFAULT 0,
    due_at                 INTEGER,             -- when it is asked for
    last_error             TEXT
) STRICT;
CREATE INDEX call_records_due ON call_records (due_at) WHERE due_at IS NOT NULL;

-- A webhook that cannot be applied is tried a few times, and then parked. One that tells of a call nobody knows yet waits for an id.
ALTER TABLE webhook_events ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE webhook_events ADD COLUMN due_at INTEGER;
ALTER TABLE webhook_events ADD COLUMN parked_at INTEGER;
ALTER TABLE webhook_events ADD COLUMN error TEXT;
ALTER TABLE webhook_events ADD COLUMN waits_kind TEXT;
ALTER TABLE webhook_events ADD COLUMN waits_id TEXT;
CREATE INDEX webhook_events_waiting ON webhook_events (waits_kind, waits_id) WHERE waits_id IS NOT NULL;
CREATE INDEX webhook_events_parked ON webhook_events (parked_at) WHERE parked_at IS NOT NULL;
CREATE INDEX webhook_events_of ON webhook_events (call_id) WHERE call_id IS NOT NULL;

-- Events of our own go the way of webhooks: with no URL, to app.events_url.
ALTER TABLE deliveries ADD COLUMN own INTEGER NOT NULL DEFAULT 0;
ALTER TABLE deliveries ADD COLUMN noted_at INTEGER;
CREATE INDEX deliveries_event ON deliveries (event_id);
CREATE INDEX deliveries_call ON deliveries (call_id) WHERE call_id IS NOT NULL;

-- What operators did.
CREATE TABLE audit (
    id      TEXT PRIMARY KEY,
    at      INTEGER NOT NULL,
    who     TEXT NOT NULL,
    what    TEXT NOT NULL,
    target  TEXT NOT NULL,
    reason  TEXT
) STRICT;
CREATE INDEX audit_at ON audit (at);
