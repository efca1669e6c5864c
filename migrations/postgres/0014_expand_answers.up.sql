-- What a provider answered to a create, for whoever sends the order again. It goes after a day, and with its call.
CREATE TABLE create_answers (
    call_id      TEXT NOT NULL,
    fingerprint  TEXT NOT NULL,
    status       BIGINT NOT NULL,
    headers      TEXT NOT NULL,                 -- JSON: names and values
    body         BYTEA NOT NULL,
    at           BIGINT NOT NULL,
    PRIMARY KEY (call_id, fingerprint)
);
CREATE INDEX create_answers_at ON create_answers (at);
