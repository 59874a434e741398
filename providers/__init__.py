"""The built-in providers: each authenticates one kind of credential, and imports only the public interface of `server`."""
