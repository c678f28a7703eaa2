"""The training of a base model that reads lines of handwriting, from random weights on a CPU."""
