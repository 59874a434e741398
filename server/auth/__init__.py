"""Who is calling, what a route asks of a caller, and who is signed out."""
