-- How many places the call's lease holds: 1, or as many calls as a batch may have at once.
ALTER TABLE calls ADD COLUMN places BIGINT NOT NULL DEFAULT 1;
