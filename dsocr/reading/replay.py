"""Replay: further lines mixed into the training set, so that what the base model reads already is not forgotten.

Lines without a text get the base model's own answers, which pull the adapter back to what the base does. Source of the
idea: replay with a model's own outputs (learning without forgetting, Li and Hoiem 2016).
"""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel

from dsocr.common.run_files import REPLAY_ANSWERS_NAME
from dsocr.data.checking import BadSamples, Measure, keep_usable
from dsocr.data.fingerprints import fingerprint_dataset
from dsocr.data.image_files import IMAGE_SUFFIXES, check_image, image_name
from dsocr.data.loading import Source, concatenate_images, has_metadata
from dsocr.data.split_names import TRAIN
from dsocr.models.adapters import base_fingerprint
from dsocr.reading.generation import ReadingOptions, read_lines
from dsocr.reading.prediction_file import PredictionFile
from dsocr.samples.processor import OcrProcessor


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReplayOptions:
    """Options of the replay.

    Attributes:
        sources: Datasets as `load_ocr_dataset` takes them, or folders of images without texts.
        fraction: Share of the replayed lines among all training lines, in 0..1.
        image_column: See `load_ocr_dataset`.
        text_column: See `load_ocr_dataset`.
        seed: Seed of the draw.
    """

    sources: list[str] = field(default_factory=list)
    fraction: float = 0.1
    image_column: str | None = None
    text_column: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Replay:
    """Lines to replay.

    Attributes:
        lines: Columns `image`, `text` and the measured ones.
        origin: `sources`, `lines`, and how many texts are the sources' own (`own_texts`) and the base model's
            (`base_answers`).
    """

    lines: Dataset
    origin: dict[str, Any]


def _measure_image(row: dict[str, Any]) -> dict[str, int]:
    width, height = check_image(row["image"])
    return {"width": width, "height": height}


def _load_source(source: str, options: ReplayOptions, bad: BadSamples) -> Dataset:
    folder = Path(source)
    if not folder.is_dir() or has_metadata(folder):
        found = Source(source, bad, image_column=options.image_column, text_column=options.text_column)
        # Never what another run evaluates on, nor rows of a misspelt split.
        names_splits = bool(found.count_splits()) or found.has_split(TRAIN)
        return found.load(TRAIN if names_splits else None, measure=_measure_image)
    images = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise FileNotFoundError(f"--replay_dataset {source}: no metadata file and no image in this folder.")
    rows = Dataset.from_dict({"image": images, "text": [""] * len(images)})
    return keep_usable(rows, lambda position: images[position], bad, measure=_measure_image)


def _draw_lines(options: ReplayOptions, own_lines: int, bad: BadSamples) -> Dataset:
    parts = [_load_source(source, options, bad).select_columns(["image", "text"]) for source in options.sources]
    found = concatenate_images(parts)
    wanted = round(options.fraction / (1 - options.fraction) * own_lines)
    if wanted > len(found):
        share = len(found) / (len(found) + own_lines)
        logger.warning(
            "--replay_dataset has %d usable lines, and --replay_fraction %g needs %d: the fraction is %.3f",
            len(found),
            options.fraction,
            wanted,
            share,
        )
    return found.shuffle(options.seed).select(range(min(wanted, len(found))))


def _answer(
    lines: Dataset,
    model: PreTrainedModel,
    processor: OcrProcessor,
    reading: ReadingOptions,
    path: Path,
) -> Dataset:
    """Give lines without a text the base model's own answers; those read before are taken from the file."""
    silent = [index for index, text in enumerate(lines["text"]) if not text]
    if not silent:
        return lines
    settings = {
        "base_fingerprint": base_fingerprint(model),
        "processor": processor.to_dict(),
        "max_new_tokens": reading.max_new_tokens,
        "images": fingerprint_dataset(lines),
    }
    # One process reads; the others wait for its file.
    with PartialState().main_process_first():
        answers = PredictionFile(path, settings)
        missing = answers.missing(silent)
        if len(missing) < len(silent):
            logger.info("%d of %d replay answers were read before", len(silent) - len(missing), len(silent))
        images = [lines[index]["image"] for index in missing]
        for line in read_lines(model, processor, images, reading, description="Replay answers"):
            answers.add(missing[line.index], reference="", prediction=line.text)
    texts = list(lines["text"])
    for index in silent:
        texts[index] = answers.rows[index]["prediction"]
    return lines.remove_columns("text").add_column("text", texts)


def load_replay(
    options: ReplayOptions,
    own_lines: int,
    model: PreTrainedModel,
    processor: OcrProcessor,
    measure: Measure,
    bad: BadSamples,
    reading: ReadingOptions,
    output_dir: str | Path,
) -> Replay:
    """Load the lines to replay, and let the base model read those without a text.

    Args:
        options: Sources and share.
        own_lines: Number of the run's own training lines.
        model: The base model without an adapter, on its device.
        processor: Its processor.
        measure: See `load_ocr_dataset`.
        bad: Refuses or counts bad samples. Lines on which the base model reads nothing are always counted, never refused.
        reading: Options of the reading.
        output_dir: Run folder; answers are kept in its `replay_answers.jsonl`.

    Raises:
        FileNotFoundError: for a source that does not exist, or a folder without images.
        ValueError: as `load_ocr_dataset`.
    """
    drawn = _draw_lines(options, own_lines, bad)
    silent = sum(not text for text in drawn["text"])
    answered = _answer(drawn, model, processor, reading, Path(output_dir) / REPLAY_ANSWERS_NAME)
    names = [image_name(image) for image in answered["image"]]
    unreadable = BadSamples("skip")
    lines = keep_usable(answered, lambda position: f"replay {names[position]}", unreadable, measure=measure)
    for entry in unreadable.entries:
        bad.count(**entry)
    origin = {
        "sources": options.sources,
        "lines": len(lines),
        "own_texts": len(drawn) - silent,
        "base_answers": silent,
        "left_out": unreadable.counts.total(),
    }
    logger.info(
        "replay: %d lines (%d with their own texts, %d with the base model's answers); %s",
        len(lines),
        origin["own_texts"],
        silent,
        unreadable.summary(),
    )
    return Replay(lines, origin)
