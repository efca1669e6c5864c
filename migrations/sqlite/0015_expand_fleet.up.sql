-- What a replica says of itself to the others, as JSON: its policy, and what it last saw at providers.
ALTER TABLE replicas ADD COLUMN state TEXT;
