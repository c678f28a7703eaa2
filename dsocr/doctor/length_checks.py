"""Tokens and tiles: what the images cost in each mode, how much letters are squeezed, whether answers fit."""

import statistics
from collections.abc import Sequence
from typing import Any

from dsocr.doctor.findings import Finding
from dsocr.images import MODES, ImageGeometry, image_geometry
from dsocr.processor import OcrProcessor


# Stretch of a letter, across over down, from which a mode is not recommended.
BAD_STRETCH = 2.0


def letter_stretch(geometry: ImageGeometry, size: tuple[int, int]) -> float:
    """How much more a letter is stretched in one direction than in the other by the view that shows it best: the tiles
    when there are any, else the global view; 1 keeps its shape.

    Example:
        >>> round(letter_stretch(image_geometry("v1", "gundam"), (1024, 96)), 2)
        1.19
    """
    width, height = size
    columns, rows = geometry.choose_grid(*size)
    if (columns, rows) != (1, 1):
        ratio = (columns * geometry.tile_size / width) / (rows * geometry.tile_size / height)
    elif geometry.keep_aspect:
        ratio = 1.0
    else:
        ratio = height / width
    return max(ratio, 1 / ratio)


def letter_height(geometry: ImageGeometry, size: tuple[int, int]) -> float:
    """Pixels of the view's height that the image's own height gets: small values are unreadable lines."""
    width, height = size
    columns, rows = geometry.choose_grid(*size)
    if (columns, rows) != (1, 1):
        return float(rows * geometry.tile_size)
    if geometry.keep_aspect:
        return height * geometry.base_size / max(width, height)
    return float(geometry.base_size)


def summarize_modes(sizes: Sequence[tuple[int, int]], processor: OcrProcessor) -> dict[str, dict[str, Any]]:
    """By image mode: median and largest number of image tokens, median stretch, median height of a line in pixels."""
    summary = {}
    for mode in MODES[processor.version]:
        geometry = image_geometry(
            processor.version, mode, size_divisor=processor.size_divisor, patch_size=processor.patch_size
        )
        tokens = [geometry.count_tokens(*size) for size in sizes]
        summary[mode] = {
            "median_tokens": statistics.median(tokens),
            "largest_tokens": max(tokens),
            "median_stretch": round(statistics.median(letter_stretch(geometry, size) for size in sizes), 2),
            "median_line_height": round(statistics.median(letter_height(geometry, size) for size in sizes), 1),
        }
    return summary


def check_lengths(
    texts: Sequence[str], processor: OcrProcessor, max_new_tokens: int, where: Sequence[str]
) -> tuple[list[Finding], dict[str, float]]:
    """Answers that are longer than what evaluation generates, and characters that the tokenizer splits.

    Returns:
        The findings, and `characters_per_token`, `longest_answer` and `median_answer` (tokens, eos included).
    """
    lengths, findings = [], []
    for text in texts:
        try:
            lengths.append(len(processor.encode_answer(text)))
        except ValueError:
            lengths.append(0)
    reserved = [index for index, length in enumerate(lengths) if not length]
    if reserved:
        message = f"{len(reserved)} texts hold a control token of the model"
        rows = [where[i] for i in reserved]
        findings.append(Finding("reserved_token", "error", message, "--fix leaves them out", rows, reserved))
    long = [index for index, length in enumerate(lengths) if length > max_new_tokens]
    if long:
        message = f"{len(long)} answers are longer than --max_new_tokens {max_new_tokens} (up to {max(lengths)} tokens)"
        advice = f"--max_new_tokens {max(lengths)}: evaluation would cut them"
        findings.append(Finding("too_long_answer", "warning", message, advice, [where[i] for i in long], long))
    encode = processor.tokenizer.encode
    letters = sorted({c for text in texts for c in text if c.isalpha()})
    split = [c for c in letters if len(encode(c, add_special_tokens=False)) > 1]
    if split:
        shown = " ".join(split[:30])
        message = f"{len(split)} of {len(letters)} letters cost the tokenizer several tokens: {shown}"
        findings.append(Finding("split_characters", "note", message, "they are learned, with more lines", [], []))
    used = [length for length in lengths if length]
    characters = sum(len(text) for text in texts)
    facts = {"characters_per_token": round(characters / max(1, sum(used) - len(used)), 2)}
    return findings, facts | {"longest_answer": max(used, default=0), "median_answer": statistics.median(used or [0])}
