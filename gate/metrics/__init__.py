"""Shift metrics, one per file, named as on the command line; each an entry point of group "gate.metrics"."""
