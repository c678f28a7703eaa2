"""SAMPLE and BATCH: an image becomes views and tokens, several samples become the inputs of a model.

This room knows the model's version and width (`dsocr.models`), which decide geometry and tokens; models know no samples.
"""
