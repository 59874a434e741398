"""Make a database, and judge whether it is safe to serve from."""
