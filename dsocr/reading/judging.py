"""Judge readers (base, adapter, a classical engine) on one dataset; resumable, with groups and confusions."""

import logging
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm

from dsocr.common.files import write_json
from dsocr.common.run_files import EVALUATION_NAME
from dsocr.data.checking import BadSamples
from dsocr.data.fingerprints import fingerprint_dataset
from dsocr.data.image_files import open_image
from dsocr.data.loading import Source
from dsocr.data.texts import name_script
from dsocr.models.adapters import base_fingerprint
from dsocr.models.freezing import bare_model
from dsocr.reading.baselines import Baseline
from dsocr.reading.comparison import compare_readers, count_confusions, find_worst, group_metrics, name_length
from dsocr.reading.generation import ReadingOptions, read_lines
from dsocr.reading.metrics import compute_metrics
from dsocr.reading.prediction_file import PredictionFile
from dsocr.reading.reader import Reader


logger = logging.getLogger(__name__)

_WITHOUT_TEXTS = "(Images without texts are read by recipes/transcribe.py.)"


def load_transcribed(
    source: str | None,
    bad_samples: BadSamples,
    *,
    split: str | None = None,
    image_column: str | None = None,
    text_column: str | None = None,
    max_samples: int | None = None,
) -> tuple[Dataset, str | None]:
    """Call `load_ocr_dataset`; its errors also say where to go with images without texts.

    Args:
        source: `--dataset_name`.
        bad_samples: Refuses or collects bad samples.
        split: Split to load; `None` takes the test split if the source has one, else every line.
        image_column: See `load_ocr_dataset`.
        text_column: See `load_ocr_dataset`.
        max_samples: See `load_ocr_dataset`.

    Returns:
        The dataset, and the loaded split.

    Raises:
        ValueError: as `load_ocr_dataset`, and when no source is named.
    """
    if source is None:
        raise ValueError(f"--dataset_name: name transcribed images. {_WITHOUT_TEXTS}")
    try:
        found = Source(source, bad_samples, image_column=image_column, text_column=text_column)
        if split is None and (not Path(source).exists() or found.has_split("test")):
            split = "test"
        return found.load(split, max_samples=max_samples), split
    except (FileNotFoundError, ValueError) as error:
        raise ValueError(f"{error} {_WITHOUT_TEXTS}") from error


def _note_resumed(file: PredictionFile, total: int) -> list[int]:
    missing = file.missing(range(total))
    if len(missing) < total:
        logger.info("%s holds %d of %d lines already; going on", file.path, total - len(missing), total)
    return missing


def describe_reading(
    source: str | Path, split: str | None, dataset: Dataset, reader: Reader, options: ReadingOptions
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings that decide predictions, so that a resumed evaluation never mixes two.

    Args:
        source: `--dataset_name`.
        split: The loaded split.
        dataset: Its rows.
        reader: Model and processor.
        options: See `read_lines`.

    Returns:
        The dataset's settings alone (for a classical engine), and all settings.
    """
    identity = {"dataset": str(source), "split": split, "dataset_fingerprint": fingerprint_dataset(dataset)}
    base = bare_model(reader.model)
    model = {
        "model": reader.name,
        "base_fingerprint": base_fingerprint(base),
        "dtype": str(base.dtype).removeprefix("torch."),
        "load_in_4bit": bool(getattr(base, "is_loaded_in_4bit", False)),
        "max_new_tokens": options.max_new_tokens,
        "loop_guard": options.loop_guard,
    }
    return identity, identity | model | reader.processor.to_dict()


def read_dataset(reader: Reader, dataset: Dataset, file: PredictionFile, options: ReadingOptions) -> list[str]:
    """Read the lines missing from a prediction file and append them batch by batch; returns all predictions in order.

    Args:
        reader: Model and processor.
        dataset: Columns `image` and `text`.
        file: Stores the predictions.
        options: See `read_lines`.
    """
    missing = _note_resumed(file, len(dataset))
    images, texts = dataset["image"], dataset["text"]
    for line in read_lines(reader.model, reader.processor, [images[index] for index in missing], options):
        index = missing[line.index]
        file.add(index, reference=texts[index], prediction=line.text, confidence=round(line.confidence, 4))
    return [file.rows[index]["prediction"] for index in range(len(dataset))]


def read_with_baseline(baseline: Baseline, dataset: Dataset, file: PredictionFile) -> list[str]:
    """Do the same as `read_dataset` with a classical engine, one image at a time."""
    images, texts = dataset["image"], dataset["text"]
    for index in tqdm(_note_resumed(file, len(dataset)), desc=f"Reading with {file.path.stem}", unit="line"):
        file.add(index, reference=texts[index], prediction=baseline.read(open_image(images[index])))
    return [file.rows[index]["prediction"] for index in range(len(dataset))]


def judge(dataset: Dataset, readers: dict[str, list[str]]) -> dict[str, Any]:
    """Compute all comparisons of some readers' predictions.

    Args:
        dataset: Columns `text` and, if known, `page`.
        readers: Predictions by reader; the first reader is the reference for the differences.

    Returns:
        By reader: `metrics`, `by_script`, `by_length`, `by_page` (if pages are known), `confusions`, `worst`; and
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
        figures = (difference["cer"], difference["low"], difference["high"])
        logger.info("CER of %s minus %s: %+.3f (%+.3f to %+.3f), %s", name, first, *figures, verdict)


def write_judged(output_dir: str | Path, judged: dict[str, Any], **fields: Any) -> Path:
    """Write `evaluation.json`; returns its path."""
    return write_json(Path(output_dir) / EVALUATION_NAME, {**fields, **judged})
