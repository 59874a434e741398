"""Live answers: event streams and WebSockets that end when what opened them ends."""
