"""Finds, converts and checks the settings."""
