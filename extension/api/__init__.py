"""Routes under /dreambooth/v1/."""
