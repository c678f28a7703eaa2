"""The door: the recipes' command lines, and the built-in demonstration that runs without one."""
