"""A library for providers whose credentials are JSON Web Tokens: strict reading, key sets, a cache of verified ones."""
