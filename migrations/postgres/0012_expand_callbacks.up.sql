-- How a delivery goes: to where the operator's config says (app); to an address that an app chose, over the network (callback); to such
-- an address that is the app's own, and therefore to app.forward_url (forwarded).
ALTER TABLE deliveries ADD COLUMN route text NOT NULL DEFAULT 'app';
