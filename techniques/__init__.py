"""Generation techniques, one per file, each an entry point of the group `gate.techniques`."""
