"""Packets as evidence: recording, reading, and a verdict on who sent from where."""
