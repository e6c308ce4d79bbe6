"""Header blocks and whole messages that we write ourselves. Pure."""
