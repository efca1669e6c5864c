DROP TABLE utterances;
DROP TABLE transcripts;
