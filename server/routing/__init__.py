"""Which route a request takes, and whether that is public."""
