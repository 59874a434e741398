"""One request, one response."""
