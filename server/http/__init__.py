"""HTTP: connections, request bodies, responses and errors."""
