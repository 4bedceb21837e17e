"""What a model file or folder is, of any family, known or foreign."""
