"""Judging readers (base, adapter, a classical engine) on one dataset, resumably, with everything that explains the figure."""

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dsocr.data import has_test_split, load_ocr_dataset
from dsocr.evaluation import read_lines
from dsocr.image_files import image_name, open_image
from dsocr.metrics import compute_metrics
from dsocr.processor import OcrProcessor
from dsocr.reading.comparison import (
    compare_readers,
    count_confusions,
    find_worst,
    group_metrics,
    name_length,
)
from dsocr.reading.prediction_file import PredictionFile
from dsocr.scripts import name_script


logger = logging.getLogger(__name__)

EVALUATION_NAME = "evaluation.json"
_WITHOUT_TEXTS = "(Images without texts are read by recipes/transcribe.py.)"


def load_transcribed(source: str | None, split: str | None = None, **options: Any) -> tuple[Dataset, str | None]:
    """`load_ocr_dataset`, whose errors also say where to go with images that have no texts.

    Args:
        source: `--dataset_name`.
        split: Split to read; `None` takes the test split if the source has one, else every line.
        **options: Further arguments of `load_ocr_dataset`.

    Returns:
        The dataset, and the split that was taken.

    Raises:
        ValueError: as `load_ocr_dataset`, and when no source is named.
    """
    if source is None:
        raise ValueError(f"--dataset_name: name transcribed images. {_WITHOUT_TEXTS}")
    try:
        if split is None and (not Path(source).exists() or has_test_split(source)):
            split = "test"
        return load_ocr_dataset(source, split=split, **options), split
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{error} {_WITHOUT_TEXTS}") from error


def fingerprint_dataset(dataset: Dataset) -> str:
    """SHA-256 over the texts and the names of the images, so that predictions are not taken for another dataset's."""
    digest = hashlib.sha256()
    for image, text in zip(dataset["image"], dataset["text"], strict=True):
        digest.update(f"{image_name(image)}\0{text}\0".encode())
    return digest.hexdigest()


def _note_resumed(file: PredictionFile, total: int) -> list[int]:
    missing = file.missing(range(total))
    if len(missing) < total:
        logger.info("%s holds %d of %d lines already; going on", file.path, total - len(missing), total)
    return missing


def read_dataset(
    model: PreTrainedModel, processor: OcrProcessor, dataset: Dataset, file: PredictionFile, **reading: Any
) -> list[str]:
    """Read what a prediction file does not hold yet, appending batch by batch; returns all predictions in order.

    Args:
        model: Native model or `PeftModel`.
        processor: Its processor.
        dataset: Columns `image` and `text`.
        file: Where predictions are kept.
        **reading: Further arguments of `read_lines`.
    """
    missing = _note_resumed(file, len(dataset))
    images, texts = dataset["image"], dataset["text"]
    for line in read_lines(model, processor, [images[index] for index in missing], **reading):
        index = missing[line.index]
        file.add(index, reference=texts[index], prediction=line.text, confidence=round(line.confidence, 4))
    return [file.rows[index]["prediction"] for index in range(len(dataset))]


def read_with_baseline(read: Callable[[Image.Image], str], dataset: Dataset, file: PredictionFile) -> list[str]:
    """`read_dataset` with a classical engine, an image at a time."""
    images, texts = dataset["image"], dataset["text"]
    for index in tqdm(_note_resumed(file, len(dataset)), desc=f"Reading with {file.path.stem}", unit="line"):
        file.add(index, reference=texts[index], prediction=read(open_image(images[index])))
    return [file.rows[index]["prediction"] for index in range(len(dataset))]


def judge(dataset: Dataset, readers: dict[str, list[str]]) -> dict[str, Any]:
    """Everything about some readers' predictions.

    Args:
        dataset: Columns `text` and, if known, `page`.
        readers: Predictions by reader, the one that others are compared with first.

    Returns:
        By reader: `metrics`, `by_script`, `by_length`, `by_page` (when pages are known), `confusions`, `worst`; and
        `differences` of every further reader to the first one.
    """
    references = list(dataset["text"])
    pages = list(dataset["page"]) if "page" in dataset.column_names else None
    judged: dict[str, Any] = {"readers": {}, "differences": {}}
    for name, predictions in readers.items():
        entry = {
            "metrics": compute_metrics(references, predictions).to_dict(),
            "by_script": group_metrics(references, predictions, lambda i: name_script(references[i])),
            "by_length": group_metrics(references, predictions, lambda i: name_length(references[i])),
            "confusions": count_confusions(references, predictions),
            "worst": [
                {"index": i, "reference": references[i], "prediction": predictions[i]}
                for i in find_worst(references, predictions)
            ],
        }
        if pages is not None:
            entry["by_page"] = group_metrics(references, predictions, lambda i: str(pages[i]))
        judged["readers"][name] = entry
    first, *others = readers
    for name in others:
        judged["differences"][name] = compare_readers(references, readers[first], readers[name]).to_dict()
    return judged


def log_judged(judged: dict[str, Any]) -> None:
    """Log the table of readers, and the differences to the first one."""
    logger.info(
        "%-12s %6s  %7s  %-13s  %7s  %6s  %6s", "reader", "lines", "CER", "95 % interval", "WER", "exact", "loops"
    )
    for name, entry in judged["readers"].items():
        m = entry["metrics"]
        interval = f"{m['cer_low']:.3f}-{m['cer_high']:.3f}"
        row = (name, m["n"], m["cer"], interval, m["wer"], m["exact"], m["looping"])
        logger.info("%-12s %6d  %7.3f  %-13s  %7.3f  %6.3f  %6.3f", *row)
    first = next(iter(judged["readers"]))
    for name, difference in judged["differences"].items():
        verdict = "clear" if difference["is_clear"] else "not clear on so few lines"
        row = (name, first, difference["cer"], difference["low"], difference["high"], verdict)
        logger.info("CER of %s minus %s: %+.3f (%+.3f to %+.3f), %s", *row)


def write_judged(output_dir: str | Path, judged: dict[str, Any], **fields: Any) -> Path:
    """Write `evaluation.json`; returns its path."""
    path = Path(output_dir) / EVALUATION_NAME
    path.write_text(json.dumps({**fields, **judged}, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return path
