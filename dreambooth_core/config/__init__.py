"""One typed configuration: dataclasses with label, help, range and choices in their metadata."""
