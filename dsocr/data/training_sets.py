"""The sets of one training run: train, held out, and further named ones."""

import logging
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from dsocr.data.bad_samples import BadSamples
from dsocr.data.loading import has_test_split, load_ocr_dataset
from dsocr.data.splits import split_by_page, split_into_fold, warn_about_width
from dsocr.processor import OcrProcessor


logger = logging.getLogger(__name__)

HELD_OUT = "held_out"


@dataclass(frozen=True)
class TrainingSets:
    """Datasets of a run, each with columns `image` and `text`.

    Attributes:
        train: What is trained on.
        held_out: What checkpoints are chosen by.
        extra: Further held-out sets, by name.
    """

    train: Dataset
    held_out: Dataset
    extra: dict[str, Dataset]

    @property
    def evaluated(self) -> dict[str, Dataset]:
        """Every set that is read before and after training, the held-out one first."""
        return {HELD_OUT: self.held_out, **self.extra}


def _parse_named_path(word: str) -> tuple[str, str]:
    name, found, path = word.partition("=")
    if not found or not name or not path or name == HELD_OUT:
        raise ValueError(f"--extra_eval_datasets {word}: write NAME=PATH, with a name other than {HELD_OUT}.")
    return name, path


def _parse_fold(word: str) -> tuple[int, int]:
    fold, found, n_folds = word.partition("/")
    if not found or not fold.isdigit() or not n_folds.isdigit():
        raise ValueError(f"--fold {word}: write 2/5 for the second of five folds.")
    return int(fold), int(n_folds)


def _draw(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    # A prefix of the file would be one page; a seeded draw is spread over all of them.
    return dataset if count is None or len(dataset) <= count else dataset.shuffle(seed).select(range(count))


def load_training_sets(
    source: str | Path,
    processor: OcrProcessor,
    bad_samples: BadSamples,
    *,
    train_split: str = "train",
    test_split: str = "test",
    config: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    max_length: int | None = None,
    validation_fraction: float = 0.1,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    extra: list[str] | None = None,
    fold: str | None = None,
    seed: int = 0,
) -> TrainingSets:
    """Load the sets of a run; when the source has no test split, whole pages are held out.

    Args:
        source: What `load_ocr_dataset` takes.
        processor: Finds texts and lengths that the model cannot take.
        bad_samples: Refuses or collects bad samples.
        train_split: Split to train on.
        test_split: Split to hold out.
        config: Configuration of a Hub dataset.
        image_column: See `load_ocr_dataset`.
        text_column: See `load_ocr_dataset`.
        max_length: Longest sample in tokens.
        validation_fraction: Share to hold out when there is no test split.
        max_train_samples: Upper limit of the training set.
        max_eval_samples: Upper limit of each evaluated set.
        extra: `NAME=PATH` words.
        fold: `2/5` holds out the second of five folds, also when the source has a test split of its own, which is then
            not looked at.
        seed: Seed of the split and of the draws.

    Raises:
        As `load_ocr_dataset` and `split_by_page`; ValueError for a word in `extra` that is not NAME=PATH.
    """
    options = {
        "config": config,
        "image_column": image_column,
        "text_column": text_column,
        "bad_samples": bad_samples,
        "processor": processor,
        "max_length": max_length,
    }
    if fold is not None:
        split = train_split if has_test_split(source, test_split, config) else None
        train, held_out = split_into_fold(load_ocr_dataset(source, split=split, **options), *_parse_fold(fold), seed)
    elif has_test_split(source, test_split, config):
        train = load_ocr_dataset(source, split=train_split, **options)
        held_out = load_ocr_dataset(source, split=test_split, **options)
    else:
        everything = load_ocr_dataset(source, **options)
        train, held_out = split_by_page(everything, validation_fraction, seed)
    named = dict(_parse_named_path(word) for word in extra or [])
    extra_options = {**options, "config": None}
    extra_sets = {name: load_ocr_dataset(path, **extra_options) for name, path in named.items()}
    warn_about_width(held_out)
    logger.info("%d lines to train on, %d held out; %s", len(train), len(held_out), bad_samples.summary())
    return TrainingSets(
        _draw(train, max_train_samples, seed),
        _draw(held_out, max_eval_samples, seed),
        {name: _draw(dataset, max_eval_samples, seed) for name, dataset in extra_sets.items()},
    )
