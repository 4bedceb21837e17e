"""The training loop and what surrounds it: set-up, state, validation images, results."""
