"""Real lines for the base: several sources, split by writer, varied each time they are shown."""

import io
import math
import random
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from dsocr.common.run_files import METADATA_NAME
from dsocr.data import BadSamples
from dsocr.data.loading import parse_local_rows
from dsocr.lab.base.hands import load_held_out
from dsocr.lab.base.paper import bend, pick_grain
from dsocr.lab.base.rendering import MAX_COLUMNS, TrainingLine, choose_columns
from dsocr.lab.base.shape import TILE_SIZE


# The auxiliary reader has 108 outputs for a line; a line of more letters than this is no use to it.
MAX_LETTERS = 84
# Letters that no hand of these sources can have meant: slips of the transcriptions.
SLIPS = frozenset("ᗅ→─С_")
# In handwriting they are one sign; sources disagree on which to write.
SAME_SIGNS = str.maketrans({"’": "'", "‘": "'", "—": "–", "─": "–"})


@dataclass(frozen=True)
class RealLine:
    """One line of a source; `encoded` is its image file's bytes, decoded when it is shown."""

    encoded: bytes
    text: str
    source: str
    writer: str

    def open(self) -> Image.Image:
        """The image as it is, grey."""
        return Image.open(io.BytesIO(self.encoded)).convert("L")


def split_of(source: str, writer: str) -> str:
    """`train`, `held_out` (watched during training) or `demonstration` (never looked at) by `held_out.json`."""
    held_out = load_held_out()
    if writer in held_out["demonstration"].get(source, ()):
        return "demonstration"
    return "held_out" if writer in held_out["writers"].get(source, ()) else "train"


def load_real_lines(folder: str | Path, split: str) -> list[RealLine]:
    """Load the lines of one split, in the order of the sources' names and files.

    Args:
        folder: Holds one folder a source, each with `metadata.jsonl` (`file_name`, `text`, `writer`).
        split: See `split_of`.

    Raises:
        FileNotFoundError: when the folder holds no source.
        ValueError: as `parse_local_rows`, or when a row names no writer.
    """
    lists = sorted(Path(folder).glob(f"*/{METADATA_NAME}"))
    if not lists:
        raise FileNotFoundError(f"--real_lines {folder}: there is no */{METADATA_NAME} in that folder.")
    lines = []
    for path in lists:
        source = path.parent.name
        for where, row in parse_local_rows(path, BadSamples()):
            if "writer" not in row:
                raise ValueError(f"{where}: names no writer; a held-out one could be trained on.")
            if split_of(source, row["writer"]) != split or SLIPS.intersection(row["text"]):
                continue
            text = " ".join(unicodedata.normalize("NFC", row["text"]).translate(SAME_SIGNS).split())
            if len(text) <= MAX_LETTERS:
                lines.append(RealLine(Path(row["image"]).read_bytes(), text, source, row["writer"]))
    return lines


def _paper_tone(pixels: np.ndarray) -> int:
    return int(np.median(pixels[pixels >= np.median(pixels)]))


def vary_line(rng: random.Random, line: RealLine) -> TrainingLine:
    """Show a real line: slanted, turned, scaled, bent, lighter or darker, on a whole number of tiles."""
    image = line.open()
    width, height = image.size
    scale_x, scale_y = rng.uniform(0.85, 1.18), rng.uniform(0.82, 1.12)
    slant = rng.uniform(-0.25, 0.25)
    columns = choose_columns(width * scale_x, height)
    needed = math.ceil(len(line.text) / 10)
    columns = min(MAX_COLUMNS, max(columns, needed))
    size = (columns * TILE_SIZE, TILE_SIZE)
    turn = math.radians(rng.uniform(-0.8, 0.8)) * min(1.0, 5 / columns)
    # A line much shorter than its tiles keeps its shape and gets paper to its right.
    wide = max(width, 0.8 * columns * height / scale_x) * (1 + rng.uniform(0, 0.05))
    a, e = wide / size[0], height / size[1] / scale_y
    b, d = slant * e, a * math.sin(turn)
    centre_x, centre_y = wide / 2 + rng.uniform(-0.03, 0.02) * height, height / 2 + rng.uniform(-0.06, 0.06) * height
    c, f = centre_x - a * size[0] / 2 - b * size[1] / 2, centre_y - d * size[0] / 2 - e * size[1] / 2
    tone = _paper_tone(np.asarray(image)[::4, ::4])
    laid = image.transform(size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR, fillcolor=tone)
    pixels = bend(rng, np.asarray(laid), 0.05).astype(np.float32)
    if rng.random() < 0.7:
        # Contrast about the paper, its tone, and grain.
        pixels = tone + (pixels - tone) * rng.uniform(0.6, 1.5)
        pixels += rng.uniform(-70, 20) if rng.random() < 0.5 else 0
        pixels += rng.uniform(0, 6) * pick_grain(rng, size)
    varied = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if rng.random() < 0.25:
        varied = varied.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.8)))
    return TrainingLine(varied, line.text, "real", f"{line.source}/{line.writer}")


class RealLines:
    """The training lines; a writer with many lines is drawn less often than their number says, by its square root."""

    def __init__(self, folder: str | Path):
        self.lines = load_real_lines(folder, "train")
        counts: dict[str, int] = {}
        for line in self.lines:
            counts[line.writer] = counts.get(line.writer, 0) + 1
        self._weights = np.cumsum([counts[line.writer] ** -0.5 for line in self.lines]).tolist()

    def pick(self, rng: random.Random) -> TrainingLine:
        """A line drawn at random, varied."""
        return vary_line(rng, rng.choices(self.lines, cum_weights=self._weights)[0])
