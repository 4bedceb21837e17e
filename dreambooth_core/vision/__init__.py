"""Models that look at images before training: captions and masks."""
