"""Finds the route of a request, and decides which routes are public."""
