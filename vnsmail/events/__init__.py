"""The event log: what became of each message, a line of JSON an event.

record.py is what a line says (pure), pipe.py how a worker hands lines over, file.py who
writes them to the disk, search.py how they are found again.
"""
