-- What a business left behind is found without reading what others did: each may have a retention of its own.
CREATE INDEX calls_ended_of ON calls (business, ended_at) WHERE phase = 'ended';
CREATE INDEX refusals_of ON refusals (business, at);

-- What an utterance's source_sequence is counted in: a number that a provider begins anew with each.
ALTER TABLE utterances ADD COLUMN source TEXT;
