"""Which virtual hosts, domains and users should exist."""

from vnsmail.directory.store import Directory, DirectoryReader, open_to_read

__all__ = ["Directory", "DirectoryReader", "open_to_read"]
