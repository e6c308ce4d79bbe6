"""Where mail for a user of this machine ends: a Maildir."""
