"""The private Postgres of development."""
