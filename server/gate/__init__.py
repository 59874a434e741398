"""The gate: a request passes only if its caller is known and has access."""
