"""Memory: estimated before a run starts, measured while it runs."""
