-- What MCP servers offered last, so that it is known after a restart while they are away.
--
-- The servers are the operator's and no tenant's: who may use which is in the settings. So no tenant's transaction
-- sees this; janus_worker alone does.
CREATE TABLE orchestration.mcp_server (
    name   text PRIMARY KEY,
    -- Of which settings that was the answer; under others it says nothing.
    origin text NOT NULL,
    -- A JSON array of tools.
    tools  text NOT NULL
);
ALTER TABLE orchestration.mcp_server ENABLE ROW LEVEL SECURITY;
ALTER TABLE orchestration.mcp_server FORCE ROW LEVEL SECURITY;
CREATE POLICY worker ON orchestration.mcp_server TO janus_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON orchestration.mcp_server TO janus_worker;
