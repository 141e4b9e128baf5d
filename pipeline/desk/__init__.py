"""What the web page, the API, the MCP server and scripts do with a store: one implementation."""
