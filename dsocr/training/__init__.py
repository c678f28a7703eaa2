"""LOSS: the trainer, the checks before it, what it says, resuming, and the memory plan."""
