"""Routes as tools: what `@describe(tool=...)` offers to agents, and tool calls for a request's own caller."""
