"""Methods: what is trained of a base, and what comes out as a result."""
