"""DNS questions, over sockets that the broker opened."""
