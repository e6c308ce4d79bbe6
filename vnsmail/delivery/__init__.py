"""From the queue to the remote, or into a mailbox here."""
