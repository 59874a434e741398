"""Routes as tools: what `@describe(tool=...)` offers to agents, and calls of it for a request's own caller."""
