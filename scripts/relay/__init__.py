"""What `scripts/bench relay` is made of: the world outside, the servers, the watching."""
