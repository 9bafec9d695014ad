"""From numbers per sample to a ranking. Arrays in, arrays out: no torch, no models, no files."""
