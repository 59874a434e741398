"""Plugins: their hooks, how they are loaded, and what a provider may use of the server."""
