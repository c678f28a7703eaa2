"""The built-in demonstration: what is trained when no model or no dataset is named."""

import itertools
import logging
from pathlib import Path

from dsocr.data.synthetic import generate_lines, write_dataset
from dsocr.models.tiny import build_tiny_model


logger = logging.getLogger(__name__)

TRAIN_LINES, EVAL_LINES = 256, 48
MAX_LENGTH = 8


def write_demo_model(folder: Path, image_mode: str | None) -> Path:
    """Write the built-in tiny base model and its processor as a checkpoint folder; returns the folder."""
    if not (folder / "config.json").is_file():
        model, processor = build_tiny_model("v1", image_mode=image_mode or "gundam")
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return folder


def write_demo_data(folder: Path) -> Path:
    """Write rendered handwriting as a dataset folder with `train` and `test`; returns the folder.

    The test lines have other texts, and half of them are in two handwriting fonts that are not in the training set.
    """
    train = list(itertools.islice(generate_lines("handwriting", seed=0, max_length=MAX_LENGTH), TRAIN_LINES))
    seen = itertools.islice(generate_lines("handwriting", seed=1, max_length=MAX_LENGTH), EVAL_LINES // 2)
    unseen = itertools.islice(generate_lines("unseen_handwriting", seed=1, max_length=MAX_LENGTH), EVAL_LINES // 2)
    write_dataset(folder / "train", train)
    write_dataset(folder / "test", [*seen, *unseen])
    return folder



def prepare_demo(
    output_dir: Path, model: str | None, dataset: str | None, image_mode: str | None
) -> tuple[str, str]:
    """Stand in for a model or a dataset that was not named, and say in plain words which flags make it the real thing.

    Args:
        output_dir: Run folder; the built-in model and data are written below it.
        model: `--model_name_or_path`, or `None`.
        dataset: `--dataset_name`, or `None`.
        image_mode: Image mode of the built-in model.

    Returns:
        `(model, dataset)`, both named.
    """
    missing = [name for name, given in (("tiny model", model), ("rendered handwriting", dataset)) if given is None]
    logger.info("=" * 88)
    logger.info("This is the built-in demonstration (%s). It has random weights and is here to be tried, not to read.",
                " on ".join(missing))
    logger.info("The real thing: --model_name_or_path deepseek-ai/DeepSeek-OCR --dataset_name path/to/my_lines/")
    logger.info("=" * 88)
    model = model or str(write_demo_model(output_dir / "base_model", image_mode))
    return model, dataset or str(write_demo_data(output_dir / "demo_data"))
