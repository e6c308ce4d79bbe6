"""SMTP without input or output: bytes go in, events and bytes come out. Pure.

``server_session`` and ``client_session`` are the two state machines. Both write and
read the same grammar: ``address``, ``commands``, ``replies`` and ``body``.
"""
