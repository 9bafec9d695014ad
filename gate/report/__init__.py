"""What a finished run looks like: the table and the figures. Reads a run, knows nothing of how it came about."""
