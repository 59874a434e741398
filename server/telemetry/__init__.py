"""Log lines and metrics for the operator."""
