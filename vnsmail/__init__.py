"""Many virtual mail hosts on one machine, each sending from its own address."""

__version__ = "0.1.0"
