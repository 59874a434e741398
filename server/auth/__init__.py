"""Identities, the access that a route requires, and revocations."""
