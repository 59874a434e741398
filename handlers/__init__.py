"""The routes that come with the server. Each file is a plugin like any stranger's, and imports only the door."""
