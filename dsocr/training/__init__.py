"""One training run: trainer, checks before it, callbacks, results; and the training of the built-in base."""
