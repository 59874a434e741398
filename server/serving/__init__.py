"""From an application to running processes."""
