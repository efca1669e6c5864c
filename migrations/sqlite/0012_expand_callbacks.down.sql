ALTER TABLE deliveries DROP COLUMN route;
