"""The embedded Postgres: a private database server for development and tests."""
