"""The receiving side: SMTP sessions, and messages that local commands hand over."""
