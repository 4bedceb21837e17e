"""Optimizers, learning rates, and how a step is taken. ``stepper.py`` puts them together."""
