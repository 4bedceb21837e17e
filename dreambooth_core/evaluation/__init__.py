"""Looking at results: scores, grids of pictures, curves."""
