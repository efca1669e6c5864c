-- What a business left behind is found without reading what others did: each may have a retention of its own.
CREATE INDEX calls_ended_of ON calls (business, ended_at) WHERE phase = 'ended';
CREATE INDEX refusals_of ON refusals (business, at);
