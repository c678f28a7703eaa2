"""Datasets of transcribed images."""

from dsocr.data.bad_samples import BadSampleError, BadSamples
from dsocr.data.loading import has_test_split, load_ocr_dataset
from dsocr.data.splits import split_by_page
from dsocr.data.training_sets import HELD_OUT, TrainingSets, load_training_sets


__all__ = [
    "HELD_OUT",
    "BadSampleError",
    "BadSamples",
    "TrainingSets",
    "has_test_split",
    "load_ocr_dataset",
    "load_training_sets",
    "split_by_page",
]
