"""TEXT: what a model reads, error rates of it, other readers in the same table, whole pages."""
