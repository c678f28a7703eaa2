"""The built-in demonstration: model and data for a run that names none."""

import itertools
import logging
import shutil
from importlib.resources import files
from pathlib import Path

from dsocr.cli.training import ParsedArguments
from dsocr.common.files import write_then_rename
from dsocr.common.run_files import BASE_MODEL_FOLDER, DEMO_DATA_FOLDER
from dsocr.data.synthetic import SyntheticLine, generate_lines, write_dataset
from dsocr.models.loading import TINY_BASE


logger = logging.getLogger(__name__)

REAL_DIGITS = Path(str(files("dsocr.data") / "examples" / "real_digits"))
# The demonstration's writers: few hands and many lines of each, like one person's own notes.
WRITERS = ("Caveat", "Neucha", "Pangolin")
TRAIN_LINES, EVAL_LINES = 3500, 100
MIN_LENGTH, MAX_LENGTH = 2, 16


def write_demo_model(folder: Path) -> Path:
    """Copy the built-in tiny base model beside the run, where its adapter finds it; returns the folder."""
    if not (folder / "config.json").is_file():
        # An interrupted copy must never pass for the model.
        with write_then_rename(folder) as partial:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(TINY_BASE, partial)
            shutil.rmtree(folder, ignore_errors=True)
    return folder


def _lines(style: str, seed: int, count: int, fonts: tuple[str, ...] | None = None) -> list[SyntheticLine]:
    stream = generate_lines(style, seed=seed, min_length=MIN_LENGTH, max_length=MAX_LENGTH, fonts=fonts)
    return list(itertools.islice(stream, count))


def write_demo_data(folder: Path) -> tuple[Path, list[str]]:
    """Write the demonstration's data.

    Returns:
        The dataset folder (`train`, and `test` with other texts of the same writers), and `NAME=PATH` of further
        held-out sets: two handwriting fonts never used in training, print, and real handwritten digits.
    """
    write_dataset(folder / "train", _lines("handwriting", 0, TRAIN_LINES, WRITERS))
    write_dataset(folder / "test", _lines("handwriting", 1, EVAL_LINES, WRITERS))
    extra = {"unseen_fonts": "unseen_handwriting", "print": "print"}
    for name, style in extra.items():
        write_dataset(folder / name, _lines(style, 1, EVAL_LINES))
    return folder, [*(f"{name}={folder / name}" for name in extra), f"real_digits={REAL_DIGITS}"]


def name_model_and_data(args: ParsedArguments) -> tuple[str, str]:
    """Model and dataset of a run; the demonstration replaces those not named.

    Args:
        args: Parsed command line. The demonstration's held-out sets are added to its `extra_eval_datasets`.

    Returns:
        `(model, dataset)`: Hub ids or folders.
    """
    model, dataset = args.model.model_name_or_path, args.script.dataset_name
    if model is not None and dataset is not None:
        return model, dataset
    with args.training.main_process_first(desc="writing the demonstration"):
        model, dataset, extra = prepare_demo(Path(args.training.output_dir), model, dataset)
    args.script.extra_eval_datasets += extra
    return model, dataset


def prepare_demo(output_dir: Path, model: str | None, dataset: str | None) -> tuple[str, str, list[str]]:
    """Replace a missing model or dataset by the demonstration's, and log the flags for a real run.

    Args:
        output_dir: Run folder; the built-in model and data are written below it.
        model: `--model_name_or_path`, or `None`.
        dataset: `--dataset_name`, or `None`.

    Returns:
        `(model, dataset, extra evaluation sets)`; model and dataset are never `None`.
    """
    missing = [name for name, given in (("tiny model", model), ("rendered handwriting", dataset)) if given is None]
    logger.info("=" * 88)
    logger.info("This is the built-in demonstration (%s).", " on ".join(missing))
    if model is None:
        logger.info("The tiny model reads print; its adapter learns handwriting. It is no model for real work.")
    logger.info("The real thing: --model_name_or_path deepseek-ai/DeepSeek-OCR --dataset_name path/to/my_lines/")
    logger.info("=" * 88)
    extra: list[str] = []
    if model is None:
        model = str(write_demo_model(output_dir / BASE_MODEL_FOLDER))
    if dataset is None:
        folder, extra = write_demo_data(output_dir / DEMO_DATA_FOLDER)
        dataset = str(folder)
    return model, dataset, extra
