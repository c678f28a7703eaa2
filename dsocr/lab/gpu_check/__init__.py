"""The first run on a GPU: everything that nobody could measure without one, in one script of ten minutes."""
