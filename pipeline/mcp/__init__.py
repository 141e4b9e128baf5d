"""Tools for language models: the MCP server."""
