-- The processes over this record, as each says of itself every few seconds. Times here are the database's.
CREATE TABLE replicas (
    id          TEXT COLLATE "C" PRIMARY KEY,       -- a ULID made at the start: the oldest that lives leads
    host        TEXT NOT NULL,
    process     BIGINT NOT NULL,
    version     TEXT NOT NULL,
    started_at  BIGINT NOT NULL,
    beat_at     BIGINT NOT NULL
);

-- Who sends a delivery takes it for a while (the database's time). Those of a call go in the order in which they were noted.
ALTER TABLE deliveries ADD COLUMN seq BIGINT GENERATED ALWAYS AS IDENTITY;
ALTER TABLE deliveries ADD COLUMN call_id TEXT COLLATE "C";
ALTER TABLE deliveries ADD COLUMN taken_until BIGINT;
UPDATE deliveries SET call_id = (SELECT e.call_id FROM webhook_events e WHERE e.id = event_id);
CREATE INDEX deliveries_of ON deliveries (call_id, seq) WHERE done_at IS NULL AND due_at IS NOT NULL;

-- Webhooks that nobody has settled are looked for all the time.
CREATE INDEX webhook_events_unsettled ON webhook_events (received_at) WHERE outcome IS NULL;

-- An order may come again at another process than the first.
ALTER TABLE calls ADD COLUMN undelivered BOOLEAN NOT NULL DEFAULT false;   -- its order's client had gone before it was answered
CREATE INDEX calls_fingerprint ON calls (fingerprint, admitted_at) WHERE fingerprint IS NOT NULL;
