"""Check tokens and tiles: image tokens of each mode, squeezed letters, answers too long to generate."""

import statistics
from collections.abc import Sequence
from typing import Any

from dsocr.doctor.findings import Finding
from dsocr.samples.geometry import LAYOUTS, MODES, ImageGeometry, image_geometry
from dsocr.samples.processor import OcrProcessor


# Above this stretch of letters (width over height) padding is better than squeezing.
BAD_STRETCH = 2.0
# A layout with this many times fewer image tokens is worth a try.
WORTH_TRYING = 2.0


def _tiles(geometry: ImageGeometry, size: tuple[int, int]) -> tuple[int, int] | None:
    grid = geometry.choose_grid(*size)
    return None if grid == (1, 1) else (grid[0] * geometry.tile_size, grid[1] * geometry.tile_size)


def letter_stretch(geometry: ImageGeometry, size: tuple[int, int]) -> float:
    """Distortion of letters (one direction over the other) in the view that shows them best: the tiles if any,
    else the global view; 1 keeps their shape.

    Example:
        >>> round(letter_stretch(image_geometry("v1", "gundam"), (1024, 96)), 2)
        1.19
    """
    width, height = size
    whole = _tiles(geometry, size)
    if geometry.layout != "original":
        return 1.0
    if whole is not None:
        ratio = (whole[0] / width) / (whole[1] / height)
    else:
        ratio = 1.0 if geometry.keep_aspect else height / width
    return max(ratio, 1 / ratio)


def letter_height(geometry: ImageGeometry, size: tuple[int, int]) -> float:
    """Height of the image in the view, in pixels; small values mean unreadable lines.

    Example:
        >>> letter_height(image_geometry("v1", "base"), (1024, 96))
        96.0
        >>> letter_height(image_geometry("v1", "base", layout="wrap"), (1024, 96))
        288.0
    """
    width, height = size
    whole, rows = _tiles(geometry, size), geometry.count_rows(*size)
    if whole is not None:
        if geometry.layout == "original":
            return float(whole[1])
        return height * min(whole[0] / width, whole[1] / height)
    if geometry.keep_aspect or geometry.layout != "original":
        return height * geometry.base_size / max(width / rows, height * rows)
    return float(geometry.base_size)


def _summarize(geometry: ImageGeometry, sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    tokens = [geometry.count_tokens(*size) for size in sizes]
    return {
        "median_tokens": statistics.median(tokens),
        "largest_tokens": max(tokens),
        "median_stretch": round(statistics.median(letter_stretch(geometry, size) for size in sizes), 2),
        "median_line_height": round(statistics.median(letter_height(geometry, size) for size in sizes), 1),
    }


def summarize_modes(sizes: Sequence[tuple[int, int]], processor: OcrProcessor) -> dict[str, dict[str, Any]]:
    """Summarise each mode, and each layout that changes its figures: median and largest number of image tokens, median
    stretch, median height of a line in pixels."""
    summary: dict[str, dict[str, Any]] = {}
    for mode in MODES[processor.version]:
        for layout in LAYOUTS:
            geometry = image_geometry(
                processor.version,
                mode,
                size_divisor=processor.size_divisor,
                patch_size=processor.patch_size,
                layout=layout,
            )
            found = _summarize(geometry, sizes)
            if layout == "original" or found != summary[mode]:
                summary[mode if layout == "original" else f"{mode} {layout}"] = found
    return summary


def recommend_mode(modes: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Recommend a mode and layout from the result of `summarize_modes`.

    It recommends tiles, because the built-in base read best with them (README, "How an image is laid out"), padded if
    upstream would squeeze letters badly. It names a layout with far fewer tokens as worth a comparison.

    Returns:
        `flags` to use, `why`, and `try`, another set of flags or an empty string.
    """
    tiled = modes["gundam"]
    squeezed = tiled["median_stretch"] > BAD_STRETCH and "gundam pad" in modes
    flags = "--image_mode gundam" + (" --image_layout pad" if squeezed else "")
    why = "reads best where it was measured"
    if squeezed:
        why += f"; padded, because tiles would stretch letters {tiled['median_stretch']} times"
    cheaper = modes.get("base wrap")
    attempt = ""
    if cheaper is not None and tiled["median_tokens"] >= WORTH_TRYING * cheaper["median_tokens"]:
        times = tiled["median_tokens"] / cheaper["median_tokens"]
        attempt = (
            f"--image_mode base --image_layout wrap ({times:.1f} times fewer image tokens; compare two short runs)"
        )
    return {"flags": flags, "why": why, "try": attempt}


def count_tokens(text: str, processor: OcrProcessor) -> int:
    """Length of an answer in tokens, eos included; 0 for a text with a reserved token."""
    try:
        return len(processor.encode_answer(text))
    except ValueError:
        return 0


def check_lengths(
    texts: Sequence[str],
    processor: OcrProcessor,
    max_new_tokens: int,
    where: Sequence[str],
    *,
    lengths: Sequence[int] | None = None,
) -> tuple[list[Finding], dict[str, float]]:
    """Find answers longer than evaluation generates, and characters split by the tokenizer.

    Args:
        texts: The texts.
        processor: Its tokenizer encodes them.
        max_new_tokens: Longest answer that evaluation generates.
        where: Names of the rows.
        lengths: Their lengths in tokens, eos included, where they are known; `None` encodes the texts.

    Returns:
        The findings, and `characters_per_token`, `longest_answer` and `median_answer` (tokens, eos included).
    """
    findings = []
    if lengths is None:
        lengths = [count_tokens(text, processor) for text in texts]
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
