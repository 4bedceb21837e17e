"""Whole models in memory, the networks of a file or folder, and names in two layouts."""
