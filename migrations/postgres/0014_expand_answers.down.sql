DROP TABLE create_answers;
