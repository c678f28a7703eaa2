"""The measuring room: speed, memory, random and tiny models, the training of the built-in base. No product code imports it."""
