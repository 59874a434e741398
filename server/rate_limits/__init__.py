"""Limits on a caller's requests and on an address's refused credentials."""
