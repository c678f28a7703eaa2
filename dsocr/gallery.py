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
    output_dir: str | Path, images: list, before: EvaluatedSet, after: EvaluatedSet, count: int = 5
) -> Path:
    """Draw the first lines of a set: the image, its reference, and what was read before and after training.

    Args:
        output_dir: Folder where `examples.png` is written.
        images: Images of the set, what `open_image` takes.
        before: What the base model read of it.
        after: What the trained model read of it.
        count: Number of lines.

    Returns:
        The path of the picture.
    """
    count = min(count, len(images))
    font = ImageFont.truetype(str(FONT_FOLDER / "OpenSans.ttf"), 17)
    block = _LINE_HEIGHT + 3 * _TEXT_HEIGHT + _GAP
    page = Image.new("RGB", (_WIDTH, count * block + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for index in range(count):
        top = _GAP + index * block
        line = open_image(images[index])
        scale = min((_WIDTH - 2 * _GAP) / line.width, _LINE_HEIGHT / line.height)
        size = (max(1, round(line.width * scale)), max(1, round(line.height * scale)))
        page.paste(line.resize(size, Image.Resampling.LANCZOS), (_GAP, top))
        texts = (before.references[index], before.predictions[index], after.predictions[index])
        for row, (label, text) in enumerate(zip(_INK, texts, strict=True)):
            y = top + _LINE_HEIGHT + row * _TEXT_HEIGHT
            draw.text((_GAP, y), label, font=font, fill="#888888")
            draw.text((_GAP + 100, y), normalize(text)[:70], font=font, fill=_INK[label])
    path = Path(output_dir) / GALLERY_NAME
    page.save(path)
    return path
