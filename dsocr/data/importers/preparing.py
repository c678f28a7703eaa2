"""Convert any source into one clean dataset folder: images and `metadata.jsonl`, relative paths, page and split."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from dsocr.common.run_files import SKIPPED_NAME
from dsocr.data.checking import BadSamples
from dsocr.data.dataset_folder import write_dataset_folder
from dsocr.data.image_files import UnreadableImageError, image_name, open_image
from dsocr.data.importers.annotations import AnnotatedImage
from dsocr.data.importers.cutting import CutError, cut_line, open_page
from dsocr.data.importers.marks import apply_policy
from dsocr.data.importers.sources import parse_annotations
from dsocr.data.loading import load_ocr_dataset
from dsocr.data.texts import clean_transcription


logger = logging.getLogger(__name__)

LEVELS = ("line", "page")


@dataclass(frozen=True)
class PrepareOptions:
    """Options for making samples.

    Attributes:
        level: `"line"` cuts lines; `"page"` takes whole pages, with one line of text per line.
        marks: Policy for editorial marks, see `apply_policy`.
        margin: Margin around a cut line, as a share of its height.
    """

    level: str = "line"
    marks: str = "keep"
    margin: float = 0.0


@dataclass(frozen=True)
class _Sample:
    image: Image.Image
    text: str
    page: str
    split: str | None = None
    writer: str | None = None


def _clean(text: str, where: str, options: PrepareOptions, bad: BadSamples) -> str | None:
    treated = apply_policy(clean_transcription(text), options.marks)
    if treated is None:
        bad.add("editorial_mark", where, f"an editorial mark in {text!r}")
    elif not treated:
        bad.add("empty_text", where, "the text is empty")
    return treated or None


def _lines_of(annotated: AnnotatedImage, options: PrepareOptions, bad: BadSamples) -> Iterator[_Sample]:
    page, scale = open_page(annotated.image, annotated.declared_size)
    for line in annotated.lines:
        text = _clean(line.text, line.name, options, bad)
        if text is None:
            continue
        if "\n" in text:
            bad.add("several_lines", line.name, f"one outline for several lines of text: {text[:80]!r}")
            continue
        try:
            yield _Sample(cut_line(page, line, scale, margin=options.margin), text, annotated.page, annotated.split)
        except CutError as error:
            bad.add(error.reason, line.name, str(error))


def _whole(annotated: AnnotatedImage, options: PrepareOptions, bad: BadSamples) -> Iterator[_Sample]:
    texts = [annotated.text] if annotated.text is not None else [line.text for line in annotated.lines]
    joined = "\n".join(text for text in texts if text.strip())
    text = _clean(joined, annotated.where, options, bad)
    if text is not None:
        image, _ = open_page(annotated.image, None)
        yield _Sample(image, text, annotated.page, annotated.split)


def _samples(annotated: AnnotatedImage, options: PrepareOptions, bad: BadSamples) -> Iterator[_Sample]:
    try:
        if annotated.text is None and options.level == "line":
            yield from _lines_of(annotated, options, bad)
        else:
            yield from _whole(annotated, options, bad)
    except (UnreadableImageError, CutError) as error:
        bad.add(error.reason, annotated.where, str(error))


def _table_samples(dataset: Dataset, source: str, options: PrepareOptions, bad: BadSamples) -> Iterator[_Sample]:
    for number, row in enumerate(dataset):
        text = _clean(row["text"], f"{source}[{number}]", options, bad)
        if text is not None:
            page = row.get("page") or Path(image_name(row["image"])).stem
            yield _Sample(open_image(row["image"]), text, page, row.get("split"), row.get("writer"))


def prepare_dataset(
    source: str | Path,
    output_dir: str | Path,
    options: PrepareOptions,
    bad: BadSamples,
    *,
    image_column: str | None = None,
    text_column: str | None = None,
    encoding: str | None = None,
) -> int:
    """Write a clean dataset folder; the source stays unchanged.

    Args:
        source: See `parse_annotations` and `load_ocr_dataset`.
        output_dir: Folder to write, see `write_dataset_folder`.
        options: How to make samples.
        bad: Refuses or counts bad samples; written to `skipped_samples.json`.
        image_column: For a table, see `load_ocr_dataset`.
        text_column: For a table, see `load_ocr_dataset`.
        encoding: For a table, see `load_ocr_dataset`.

    Returns:
        The number of samples.

    Raises:
        FileNotFoundError: when there is no such source.
        ValueError: as `write_dataset_folder`, or no sample of the source is usable.
    """
    if options.level not in LEVELS:
        raise ValueError(f"--level {options.level}: not one of {', '.join(LEVELS)}.")
    with write_dataset_folder(output_dir, "--output") as writer:
        annotated = parse_annotations(source, bad)
        if annotated is None:
            dataset = load_ocr_dataset(
                source, bad_samples=bad, image_column=image_column, text_column=text_column, encoding=encoding
            )
            samples = _table_samples(dataset, str(source), options, bad)
        else:
            samples = (sample for page in annotated for sample in _samples(page, options, bad))
        for sample in tqdm(samples, desc="Preparing", unit="sample", delay=1):
            known = {"page": sample.page, "writer": sample.writer, "split": sample.split}
            fields = {"text": sample.text} | {key: value for key, value in known.items() if value}
            writer.add(sample.image.save, fields)
        bad.write(Path(output_dir) / SKIPPED_NAME)
        if not writer.count:
            raise ValueError(f"{source}: no usable sample; {bad.summary()}.")
    logger.info("%d samples in %s; %s", writer.count, output_dir, bad.summary())
    return writer.count
