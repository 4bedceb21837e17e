"""Makes pocket, the tiny Stable Diffusion 1.x that ships with the package (see README.md)."""
