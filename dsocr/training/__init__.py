"""LOSS: the trainer, its preflight checks, callbacks, resuming, and the memory plan."""
