"""An internet in network namespaces, on one machine, to try it all in."""
