-- Where an operator came from, and what was there before and after.
ALTER TABLE audit ADD COLUMN came_from TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN before_json TEXT;
ALTER TABLE audit ADD COLUMN after_json TEXT;
