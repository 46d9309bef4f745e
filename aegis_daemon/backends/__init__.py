"""The server side: how MCP servers are started, reached and brought to an end."""
