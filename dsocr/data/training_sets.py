"""Load the sets of a training run: train, held out, and further named ones."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from dsocr.data.checking import BadSamples, Measure
from dsocr.data.loading import Source, concatenate_images
from dsocr.data.split_names import find_split
from dsocr.data.splits import split_by_page, split_into_fold, warn_about_width


logger = logging.getLogger(__name__)

HELD_OUT = "held_out"
TRAIN_SAMPLE = 50


@dataclass(frozen=True)
class DataOptions:
    """Options of a run's data: splits, columns, limits.

    Attributes:
        train_split: Split to train on.
        test_split: Split to hold out.
        config: Configuration of a Hub dataset.
        image_column: See `load_ocr_dataset`.
        text_column: See `load_ocr_dataset`.
        validation_fraction: Share of the rows to hold out, by page, when there is no test split.
        fold: `2/5` holds out the second of five folds, also when the source has its own test split; that split is
            then ignored.
        max_train_samples: Upper limit of the training set.
        max_eval_samples: Upper limit of each evaluated set.
        extra: Further held-out sets as `NAME=PATH` words.
        seed: Seed of the split and of the draws.
    """

    train_split: str = "train"
    test_split: str = "test"
    config: str | None = None
    image_column: str | None = None
    text_column: str | None = None
    validation_fraction: float = 0.1
    fold: str | None = None
    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    extra: list[str] = field(default_factory=list)
    seed: int = 0


@dataclass(frozen=True)
class TrainingSets:
    """Datasets of a run, each with columns `image` and `text`.

    Attributes:
        train: Training rows.
        held_out: Rows for choosing a checkpoint.
        extra: Further held-out sets, by name.
        replayed: Lines at the end of `train` that are replayed from elsewhere.
        replay_origin: Where they come from; see `dsocr.reading.replay.Replay`.
    """

    train: Dataset
    held_out: Dataset
    extra: dict[str, Dataset]
    replayed: int = 0
    replay_origin: dict[str, Any] = field(default_factory=dict)

    @property
    def evaluated(self) -> dict[str, Dataset]:
        """Every set to read before and after training, the held-out one first."""
        return {HELD_OUT: self.held_out, **self.extra}

    @property
    def train_sample(self) -> Dataset:
        """At most 50 of the run's own training lines, evenly spread, for the model to read after training."""
        own = len(self.train) - self.replayed
        step = max(1, own // TRAIN_SAMPLE)
        return self.train.select(range(0, own, step)[:TRAIN_SAMPLE])

    def with_replay(self, lines: Dataset, origin: dict[str, Any]) -> "TrainingSets":
        """The same sets with further training lines behind the run's own."""
        train = concatenate_images([self.train, lines])
        return replace(self, train=train, replayed=len(lines), replay_origin=origin)


def parse_named_path(word: str) -> tuple[str, str]:
    """Name and path of a word of `--extra_eval_datasets`.

    Raises:
        ValueError: it is not NAME=PATH, or the name is taken.
    """
    name, found, path = word.partition("=")
    if not found or not name or not path or name == HELD_OUT:
        raise ValueError(f"--extra_eval_datasets {word}: write NAME=PATH, with a name other than {HELD_OUT}.")
    return name, path


def parse_fold(word: str) -> tuple[int, int]:
    """Number of the fold that is held out, from 1, and number of folds.

    Raises:
        ValueError: it is not of the form `2/5`, or there is no such fold.
    """
    fold, found, n_folds = word.partition("/")
    if not found or not fold.isdecimal() or not n_folds.isdecimal():
        raise ValueError(f"--fold {word}: write 2/5 for the second of five folds.")
    if int(n_folds) < 2 or not 1 <= int(fold) <= int(n_folds):
        raise ValueError(f"--fold {word}: of {n_folds} folds, take one from 1/{n_folds} to {n_folds}/{n_folds}.")
    return int(fold), int(n_folds)


def _draw(dataset: Dataset, count: int | None, seed: int) -> Dataset:
    # Draw at random: the first rows of the file may all come from one page.
    return dataset if count is None or len(dataset) <= count else dataset.shuffle(seed).select(range(count))


def _log_unused(source: Source, used: tuple[str, ...]) -> None:
    """Name the splits of a source that this run neither trains on nor holds out."""
    counts = source.count_splits()
    names = [name for name in counts if name]
    taken = {find_split(split, names) for split in used}
    for name, count in counts.items():
        if name is not None and name not in taken:
            logger.warning(
                "%d rows of split %s are not used: hold them out with --dataset_test_split %s, or read them with "
                "--extra_eval_datasets",
                count,
                name,
                name,
            )


def _divide(source: Source, measure: Measure, options: DataOptions) -> tuple[Dataset, Dataset]:
    """Divide one source into train and held-out rows."""
    names_splits = bool(source.count_splits()) or source.has_split(options.train_split)
    # By its name even where there is no test split: rows of a misspelt split must not be trained on.
    train_split = options.train_split if names_splits else None
    if options.fold is not None:
        _log_unused(source, (options.train_split,))
        train = source.load(train_split, measure=measure)
        return split_into_fold(train, *parse_fold(options.fold), options.seed)
    _log_unused(source, (options.train_split, options.test_split))
    train = source.load(train_split, measure=measure)
    if source.has_split(options.test_split):
        return train, source.load(options.test_split, measure=measure)
    return split_by_page(train, options.validation_fraction, options.seed)


def load_training_sets(
    source: str | Path, measure: Measure, bad_samples: BadSamples, options: DataOptions = DataOptions()
) -> TrainingSets:
    """Load the sets of a run; if the source has no test split, hold out whole pages.

    Args:
        source: Anything that `load_ocr_dataset` takes.
        measure: Measures each row; `dsocr.samples.lengths.SampleMeter` also refuses texts and lengths outside the
            model's limits.
        bad_samples: Refuses or collects bad samples.
        options: Splits, columns and limits.

    Raises:
        As `load_ocr_dataset`, `split_by_page` and `split_into_fold`; ValueError when an entry of `options.extra` is not
        NAME=PATH, or `options.fold` is no fold.
    """
    named = dict(parse_named_path(word) for word in options.extra)
    image_column, text_column = options.image_column, options.text_column
    found = Source(
        source,
        bad_samples,
        config=options.config,
        image_column=image_column,
        text_column=text_column,
        own_splits=(options.train_split, options.test_split),
    )
    train, held_out = _divide(found, measure, options)
    further = {
        name: Source(path, bad_samples, image_column=image_column, text_column=text_column)
        for name, path in named.items()
    }
    extra = {name: other.load(measure=measure) for name, other in further.items()}
    warn_about_width(held_out)
    logger.info("%d lines to train on, %d held out; %s", len(train), len(held_out), bad_samples.summary())
    return TrainingSets(
        _draw(train, options.max_train_samples, options.seed),
        _draw(held_out, options.max_eval_samples, options.seed),
        {name: _draw(dataset, options.max_eval_samples, options.seed) for name, dataset in extra.items()},
    )
