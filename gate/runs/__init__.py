"""Run directories: their files, the schema of results.json, the parts of an unfinished run."""
