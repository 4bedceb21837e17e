"""Attention kernels: a probe that finds out which really work, and one of our own."""
