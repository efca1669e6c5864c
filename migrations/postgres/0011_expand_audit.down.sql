ALTER TABLE audit DROP COLUMN after_json;
ALTER TABLE audit DROP COLUMN before_json;
ALTER TABLE audit DROP COLUMN came_from;
