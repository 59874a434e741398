"""Guests of the house: who may vouch for a caller. Each imports the server only through its door."""
