"""Finding a base: the embedded one by its name, a path, or a model on the hub."""
