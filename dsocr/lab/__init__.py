"""Measuring rooms: speed, memory, random and tiny models, the training of the built-in base. No product code imports them."""
