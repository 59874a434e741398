"""How often a caller may ask, and how often an address may be refused."""
