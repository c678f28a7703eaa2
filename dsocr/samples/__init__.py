"""SAMPLE and BATCH: cut an image into views and tokens, and batch samples into a model's inputs.

Geometry and tokens depend on the model's version and width, so this room imports `dsocr.models`, never the reverse.
"""
