"""ROWS: tables, folders, annotations and Hub datasets become rows of `image` and `text`, checked and split."""

from dsocr.data.checking import BadSampleError, BadSamples
from dsocr.data.loading import load_ocr_dataset
from dsocr.data.splits import split_by_page
from dsocr.data.training_sets import HELD_OUT, DataOptions, TrainingSets, load_training_sets


__all__ = [
    "HELD_OUT",
    "BadSampleError",
    "BadSamples",
    "DataOptions",
    "TrainingSets",
    "load_ocr_dataset",
    "load_training_sets",
    "split_by_page",
]
