"""Held-out lines of a run, kept small beside it, so that its report can be made again without the dataset."""

import io
import json
from pathlib import Path
from typing import Any

from dsocr.evaluation import EvaluatedSet
from dsocr.image_files import open_image


GALLERY_FOLDER = "gallery"
GALLERY_INDEX = "gallery.json"
GALLERY_LINES = 16
MAX_WIDTH, MAX_HEIGHT = 900, 240


def make_thumbnail(image: Any) -> bytes:
    """An image, what `open_image` takes, as a JPEG of at most 900 x 240 pixels."""
    picture = open_image(image)
    picture.thumbnail((MAX_WIDTH, MAX_HEIGHT))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_gallery(output_dir: str | Path, images: list, before: EvaluatedSet, after: EvaluatedSet) -> Path:
    """Write the first lines of a set with what was read before and after training.

    Args:
        output_dir: Run folder; `gallery/` is written in it.
        images: Images of the set, what `open_image` takes.
        before: What the base model read of it.
        after: What the trained model read of it.

    Returns:
        The folder.
    """
    folder = Path(output_dir) / GALLERY_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(min(GALLERY_LINES, len(images))):
        name = f"{index:02d}.jpg"
        (folder / name).write_bytes(make_thumbnail(images[index]))
        texts = {"reference": before.references[index], "before": before.predictions[index]}
        entries.append({"image": name, **texts, "after": after.predictions[index]})
    content = json.dumps(entries, ensure_ascii=False, indent=2) + "\n"
    (folder / GALLERY_INDEX).write_text(content, encoding="utf-8")
    return folder
