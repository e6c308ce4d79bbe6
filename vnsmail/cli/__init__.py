"""The command line: one file a noun, one value as a table or as JSON."""
