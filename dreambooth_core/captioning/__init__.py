"""Captions by a model that looks at images, worded for training."""
