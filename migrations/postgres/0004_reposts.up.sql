-- Orders that are sent again: what makes two orders equal, and how often a refused one was tried.
ALTER TABLE calls ADD COLUMN fingerprint TEXT;
ALTER TABLE refusals ADD COLUMN attempts BIGINT NOT NULL DEFAULT 1;
