"""What the operator is told: log lines and metrics."""
