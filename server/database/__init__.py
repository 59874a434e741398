"""SQL under a caller's scope: connections, their pool, and one transaction for a request."""
