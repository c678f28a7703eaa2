"""TEXT: read images with a model, compute error rates, compare other readers, transcribe whole pages."""
