"""A picture of held-out lines with what the base model and the adapter read."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dsocr.data.synthetic import FONT_FOLDER
from dsocr.evaluation import EvaluatedSet
from dsocr.image_files import open_image
from dsocr.metrics import normalize


GALLERY_NAME = "examples.png"
_WIDTH, _LINE_HEIGHT, _TEXT_HEIGHT, _GAP = 560, 80, 24, 18
_INK = {"reference": "#222222", "before": "#a32020", "after": "#1d6b2f"}


def draw_examples(
    output_dir: str | Path, images: list, read: dict[str, EvaluatedSet], count: int = 5, name: str = GALLERY_NAME
) -> Path:
    """Draw the first lines of a set: the image, its reference, and what was read.

    Args:
        output_dir: Folder where the picture is written.
        images: Images of the set, what `open_image` takes.
        read: What was read of it, by a word for the reader: `before`, `after`.
        count: Number of lines.
        name: File name.

    Returns:
        The path of the picture.
    """
    count = min(count, len(images))
    font = ImageFont.truetype(str(FONT_FOLDER / "OpenSans.ttf"), 17)
    block = _LINE_HEIGHT + (1 + len(read)) * _TEXT_HEIGHT + _GAP
    page = Image.new("RGB", (_WIDTH, count * block + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for index in range(count):
        top = _GAP + index * block
        line = open_image(images[index])
        scale = min((_WIDTH - 2 * _GAP) / line.width, _LINE_HEIGHT / line.height)
        size = (max(1, round(line.width * scale)), max(1, round(line.height * scale)))
        page.paste(line.resize(size, Image.Resampling.LANCZOS), (_GAP, top))
        references = next(iter(read.values())).references
        texts = {"reference": references[index], **{label: found.predictions[index] for label, found in read.items()}}
        for row, (label, text) in enumerate(texts.items()):
            y = top + _LINE_HEIGHT + row * _TEXT_HEIGHT
            draw.text((_GAP, y), label, font=font, fill="#888888")
            draw.text((_GAP + 100, y), normalize(text)[:70], font=font, fill=_INK.get(label, _INK["after"]))
    path = Path(output_dir) / name
    page.save(path)
    return path
