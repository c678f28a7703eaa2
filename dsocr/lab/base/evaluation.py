"""The fixed sets that the base is watched on: print, fonts seen and unseen, real hands never seen, English letters."""

import random
from collections import defaultdict
from pathlib import Path

from PIL import Image
from transformers import PreTrainedModel

from dsocr.data import BadSamples
from dsocr.data.image_files import open_image
from dsocr.data.loading import parse_local_rows
from dsocr.lab.base.chunks import LineSources
from dsocr.lab.base.curriculum import MOST_LETTERS
from dsocr.lab.base.real_lines import SAME_SIGNS, load_real_lines
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.reading.metrics import compute_metrics
from dsocr.samples.processor import OcrProcessor


SEED = 1_000_003
# Share of random letters among the words of the rendered sets.
RANDOM_LETTERS = 0.12
MAX_NEW_TOKENS = 96
# Lines of a set that are shown with their reading.
EXAMPLES = 2

EvaluationSet = list[tuple[Image.Image, str]]


def load_listed_lines(folder: str | Path) -> EvaluationSet:
    """Load images and texts of a folder with `metadata.jsonl` (`image`, `text`).

    Raises:
        As `parse_local_rows` and `open_image`.
    """
    rows = [row for _, row in parse_local_rows(folder, BadSamples())]
    return [(open_image(row["image"]), " ".join(row["text"].translate(SAME_SIGNS).split())) for row in rows]


def build_evaluation_sets(
    sources: LineSources, real_lines: str | Path | None, letters: str | Path | None, *, lines: int
) -> dict[str, EvaluationSet]:
    """The sets by name, the same for the same arguments.

    Args:
        sources: What rendered lines are drawn from.
        real_lines: Folder of the real lines, whose held-out writers make one set a source; `None` makes none.
        letters: Folder of lines that are only ever evaluated on (stanford1905); `None` makes none.
        lines: Lines of a set at most.
    """
    sets = {}
    for kind, name in (("print", "print"), ("hand", "fonts_seen"), ("unseen", "fonts_unseen")):
        rng = random.Random(f"{SEED}/{kind}")
        drawn = [sources.renderers[kind].render(rng, 1, MOST_LETTERS, RANDOM_LETTERS) for _ in range(lines)]
        sets[name] = [(line.image, line.text) for line in drawn]
    by_source = defaultdict(list)
    for line in load_real_lines(real_lines, "held_out") if real_lines is not None else ():
        by_source[f"real_{line.source}"].append((line.open(), line.text))
    if letters is not None:
        by_source["letters_1905"] = load_listed_lines(letters)
    for name, found in by_source.items():
        sets[name] = random.Random(SEED).sample(found, min(lines, len(found)))
    return sets


def measure_sets(
    model: PreTrainedModel, processor: OcrProcessor, sets: dict[str, EvaluationSet]
) -> tuple[dict[str, float], dict[str, list[list[str]]]]:
    """CER of every set by generation, `real` for all real hands together, and some lines as `[text, read]`."""
    errors: dict[str, float] = {}
    shown: dict[str, list[list[str]]] = {}
    real_texts: list[str] = []
    real_read: list[str] = []
    for name, lines in sets.items():
        read = transcribe(
            model,
            processor,
            [image for image, _ in lines],
            ReadingOptions(batch_size=32, max_new_tokens=MAX_NEW_TOKENS, progress=False),
        )
        texts = [text for _, text in lines]
        errors[name] = round(compute_metrics(texts, read).cer, 4)
        shown[name] = [list(pair) for pair in zip(texts[:EXAMPLES], read[:EXAMPLES], strict=True)]
        if name.startswith("real_"):
            real_texts, real_read = real_texts + texts, real_read + read
    if real_texts:
        errors["real"] = round(compute_metrics(real_texts, real_read).cer, 4)
    return errors, shown
