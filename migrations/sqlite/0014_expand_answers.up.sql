-- What a provider answered to a create, for whoever sends the order again. It goes after a day, and with its call.
CREATE TABLE create_answers (
    call_id      TEXT NOT NULL,
    fingerprint  TEXT NOT NULL,
    status       INTEGER NOT NULL,
    headers      TEXT NOT NULL,                 -- JSON: names and values
    body         BLOB NOT NULL,
    at           INTEGER NOT NULL,
    PRIMARY KEY (call_id, fingerprint)
) STRICT;
CREATE INDEX create_answers_at ON create_answers (at);
