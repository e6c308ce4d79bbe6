"""Messages accepted and not yet delivered: one folder an owner, durable at 250."""
