"""Signing in (RFC 4422): passwords, keys, and the server's side of the mechanisms."""
