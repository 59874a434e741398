"""The routes that come with the server. Each module is a plugin and imports only the public interface of `server`."""
