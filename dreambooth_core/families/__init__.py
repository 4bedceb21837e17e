"""Families of base models: how each is recognised, loaded, conditioned on text and sampled.

The training loop never asks which family it has; what differs lives here.
"""
