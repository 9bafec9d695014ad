"""Probes, one per file, named as the command line names them; each an entry point of group "gate.probes"."""
