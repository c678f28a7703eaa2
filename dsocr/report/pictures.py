"""Pictures of held-out lines: one PNG for people, and a small gallery for rebuilding the report."""

import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from dsocr.common.files import write_json, write_then_rename
from dsocr.common.run_files import GALLERY_FOLDER, GALLERY_INDEX
from dsocr.data.image_files import open_image
from dsocr.data.synthetic import FONT_FOLDER
from dsocr.data.texts import normalize
from dsocr.reading.evaluation import EvaluatedSet


GALLERY_LINES = 16
# Largest thumbnail, pixels.
MAX_WIDTH, MAX_HEIGHT = 900, 240
_SHOWN_LINES, _SHOWN_CHARACTERS = 5, 70
_WIDTH, _LINE_HEIGHT, _TEXT_HEIGHT, _GAP = 560, 80, 24, 18
_INK = {"reference": "#222222", "before": "#a32020", "after": "#1d6b2f"}


def make_thumbnail(image: Any) -> bytes:
    """Encode an image (anything that `open_image` takes) as a JPEG of at most 900 x 240 pixels."""
    picture = open_image(image)
    picture.thumbnail((MAX_WIDTH, MAX_HEIGHT))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def write_gallery(output_dir: str | Path, images: list, before: EvaluatedSet, after: EvaluatedSet) -> Path:
    """Write the first lines of a set, with the readings before and after training.

    Args:
        output_dir: Run folder; the gallery goes to its `gallery/`.
        images: Images of the set (anything that `open_image` takes).
        before: The base model's readings.
        after: The trained model's readings.

    Returns:
        The folder.
    """
    folder = Path(output_dir) / GALLERY_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index in range(min(GALLERY_LINES, len(images))):
        name = f"{index:02d}.jpg"
        with write_then_rename(folder / name) as partial:
            partial.write_bytes(make_thumbnail(images[index]))
        texts = {"reference": before.references[index], "before": before.predictions[index]}
        entries.append({"image": name, **texts, "after": after.predictions[index]})
    write_json(folder / GALLERY_INDEX, entries)
    return folder


def draw_examples(path: str | Path, images: list, read: dict[str, EvaluatedSet]) -> None:
    """Draw the first five lines of a set into a PNG file: the image, its reference, and the readings.

    Args:
        path: The file.
        images: Images of the set (anything that `open_image` takes).
        read: Readings of the set by name of the reader: `before`, `after`.
    """
    count = min(_SHOWN_LINES, len(images))
    font = ImageFont.truetype(str(FONT_FOLDER / "OpenSans.ttf"), 17)
    block = _LINE_HEIGHT + (1 + len(read)) * _TEXT_HEIGHT + _GAP
    page = Image.new("RGB", (_WIDTH, count * block + _GAP), "white")
    draw = ImageDraw.Draw(page)
    references = next(iter(read.values())).references
    for index in range(count):
        top = _GAP + index * block
        line = open_image(images[index])
        scale = min((_WIDTH - 2 * _GAP) / line.width, _LINE_HEIGHT / line.height)
        size = (max(1, round(line.width * scale)), max(1, round(line.height * scale)))
        page.paste(line.resize(size, Image.Resampling.LANCZOS), (_GAP, top))
        texts = {"reference": references[index], **{label: found.predictions[index] for label, found in read.items()}}
        for row, (label, text) in enumerate(texts.items()):
            y = top + _LINE_HEIGHT + row * _TEXT_HEIGHT
            draw.text((_GAP, y), label, font=font, fill="#888888")
            draw.text(
                (_GAP + 100, y), normalize(text)[:_SHOWN_CHARACTERS], font=font, fill=_INK.get(label, _INK["after"])
            )
    with write_then_rename(path) as partial:
        page.save(partial, "PNG")
