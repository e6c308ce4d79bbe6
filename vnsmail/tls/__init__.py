"""TLS, of connections that come in and of those that go out."""
