"""Adapters (LoRA and its relatives): read, write, apply, merge, resize, extract, inspect."""
