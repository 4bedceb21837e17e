"""One module for each command: its options as a dataclass, and what it does."""
