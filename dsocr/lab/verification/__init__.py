"""Verify a checkpoint or adapter on this machine: its files, its tokens, and what it does with one shipped line."""
