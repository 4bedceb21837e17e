"""The host, seen from the engine: the only code that imports the host's modules."""
