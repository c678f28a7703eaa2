"""Command lines of the recipes, and the built-in demonstration for runs without a model or dataset."""
