"""Starts, watches and restarts broker and workers; serves the control socket."""
