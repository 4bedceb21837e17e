"""Looking at results: scores, grids of images, curves."""
