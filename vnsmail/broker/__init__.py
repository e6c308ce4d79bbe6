"""The broker: opens sockets for processes that may not, and policy on who gets which."""
