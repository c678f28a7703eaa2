"""Render lines of text, printed or handwritten, in this package's fonts: an endless stream, deterministic by seed.

Every random choice comes from one `random.Random`, so a seed fixes the images to the bit for one version of Pillow.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from dsocr.common.files import begin_waiting_folder, move_waiting, set_aside, write_then_rename
from dsocr.common.run_files import IMAGES_FOLDER, METADATA_NAME


FONT_FOLDER = files("dsocr.data") / "fonts"
PRINT_FONTS = ("PTSans", "PTSerif", "Lora", "OpenSans", "RobotoMono")
HANDWRITING_FONTS = ("Caveat", "MarckScript", "Comforter", "GreatVibes", "Pacifico", "Neucha", "Pangolin")
# Never used in training: these fonts stand for a hand that the model has not seen.
HELD_OUT_FONTS = ("BadScript", "ShantellSans")
FONTS = {"print": PRINT_FONTS, "handwriting": HANDWRITING_FONTS, "unseen_handwriting": HELD_OUT_FONTS}

LETTERS = {
    "latin": "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz",
    "russian": "АБВГДЕЁЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯабвгдеёжзийклмнопрстуфхцчшщъыьэюя",
}
# Letters that look alike in both scripts; a line of these alone could belong to either.
LOOK_ALIKES = frozenset("ABCEHKMOPTXaceopxyАВСЕНКМОРТХасеорху")
WORD_FILES = {"latin": "en.txt", "russian": "ru.txt"}
DIGITS = "0123456789"
# `(width, height)` of every image in pixels.
LINE_SIZE = (240, 40)
PUNCTUATION = ".,:;!?-()"


@dataclass(frozen=True)
class SyntheticLine:
    """One rendered line.

    Attributes:
        image: RGB image.
        text: Text on the image.
        script: `latin` or `russian`.
        font: Name of the font.
    """

    image: Image.Image
    text: str
    script: str
    font: str


@cache
def load_words(script: str) -> tuple[str, ...]:
    """The embedded word list of a script."""
    return tuple((files("dsocr.data") / "words" / WORD_FILES[script]).read_text(encoding="utf-8").split())


@cache
def _load_font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT_FOLDER / f"{name}.ttf"), size, layout_engine=ImageFont.Layout.BASIC)


def _random_word(rng: random.Random, script: str) -> str:
    kind = rng.random()
    if kind < 0.45:
        word = rng.choice(load_words(script))
        return word.capitalize() if rng.random() < 0.2 else word
    if kind < 0.9:
        # Use random letters too: a model cannot guess them as it guesses words.
        letters = "".join(rng.choices(LETTERS[script], k=rng.randint(1, 7)))
        return letters if rng.random() < 0.25 else letters.lower()
    return "".join(rng.choices(DIGITS, k=rng.randint(1, 4)))


def tells_script(text: str) -> bool:
    """Whether a text has a letter that belongs to its script alone, or no letter at all."""
    letters = [character for character in text if character.isalpha()]
    return not letters or any(letter not in LOOK_ALIKES for letter in letters)


def random_text(rng: random.Random, script: str, min_length: int, max_length: int) -> str:
    """Random words, letters, digits and punctuation, `min_length` to `max_length` characters.

    A line with letters has at least one that belongs to its script alone.
    """
    while True:
        length = rng.randint(min_length, max_length)
        text = ""
        while len(text) < length:
            text += _random_word(rng, script) + (rng.choice(PUNCTUATION) if rng.random() < 0.12 else "") + " "
        text = text[:length].strip()
        if len(text) == length and tells_script(text):
            return text


def _draw_text(rng: random.Random, text: str, font_name: str, handwriting: bool) -> Image.Image:
    """Draw the ink as an `L` mask of `LINE_SIZE`; scale it down if the line is too long."""
    width, height = LINE_SIZE
    points = rng.randint(round(height * 0.5), round(height * 0.72))
    font = _load_font(font_name, points)
    margin = points
    canvas = Image.new("L", (round(font.getlength(text) * 1.3) + 2 * margin + 2 * len(text), 2 * points), 0)
    draw = ImageDraw.Draw(canvas)
    stroke = 1 if handwriting and points > 22 and rng.random() < 0.15 else 0
    if handwriting:
        x, wobble, drift = float(margin), rng.uniform(0, 0.05) * points, rng.uniform(-0.04, 0.04)
        spacing = rng.uniform(0.0, 0.08) * points
        for character in text:
            y = points * 0.4 + drift * (x - margin) * 0.5 + rng.uniform(-wobble, wobble)
            draw.text((x, y), character, fill=255, font=font, stroke_width=stroke)
            x += font.getlength(character) + spacing * rng.random()
    else:
        draw.text((margin, points * 0.4), text, fill=255, font=font)
    # Slant and tilt: always for handwriting, sometimes for print (italics, turned scans).
    if handwriting or rng.random() < 0.4:
        slant = rng.uniform(-0.1, 0.35)
        tilt = rng.uniform(-0.02, 0.02)
        shift = -slant * canvas.height / 2
        canvas = canvas.transform(
            canvas.size,
            Image.Transform.AFFINE,
            (1, slant, shift, tilt, 1, -tilt * canvas.width / 2),
            Image.Resampling.BILINEAR,
        )
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"font {font_name} draws nothing for {text!r}")
    ink = canvas.crop(box)
    scale = min(1.0, (width - 4) / ink.width, (height - 2) / ink.height)
    if scale < 1:
        new_size = (max(1, round(ink.width * scale)), max(1, round(ink.height * scale)))
        ink = ink.resize(new_size, Image.Resampling.BILINEAR)
    mask = Image.new("L", LINE_SIZE, 0)
    left = rng.randint(0, min(round(0.3 * height), width - ink.width))
    top = rng.randint(0, height - ink.height)
    mask.paste(ink, (left, top))
    return mask


def _draw_paper(rng: random.Random) -> Image.Image:
    width, height = LINE_SIZE
    tone = rng.randint(215, 255)
    colour = tuple(max(0, tone - rng.randint(0, 18)) for _ in range(3))
    paper = Image.new("RGB", LINE_SIZE, colour)
    kind = rng.random()
    if kind < 0.35:
        draw = ImageDraw.Draw(paper)
        line = tuple(max(0, part - rng.randint(20, 60)) for part in colour)
        step = rng.randint(max(6, height // 4), height)
        for y in range(rng.randint(0, step), height, step):
            draw.line((0, y, width, y), fill=line)
        if kind < 0.15:
            for x in range(rng.randint(0, step), width, step):
                draw.line((x, 0, x, height), fill=line)
    return paper


def _age(rng: random.Random, image: Image.Image) -> Image.Image:
    width, height = image.size
    if rng.random() < 0.3:
        dx, dy = width * 0.01, height * 0.04
        corners = [
            rng.uniform(-d, d) + base
            for base, d in ((0, dx), (0, dy), (0, dx), (height, dy), (width, dx), (height, dy), (width, dx), (0, dy))
        ]
        image = image.transform(
            image.size, Image.Transform.QUAD, corners, Image.Resampling.BILINEAR, fillcolor=image.getpixel((0, 0))
        )
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.6)))
    if rng.random() < 0.7:
        noise = np.random.default_rng(rng.getrandbits(32)).integers(-12, 13, (height, width, 1), dtype=np.int16)
        image = Image.fromarray(np.clip(np.asarray(image, dtype=np.int16) + noise, 0, 255).astype(np.uint8))
    return image


def render_line(text: str, font: str, rng: random.Random) -> Image.Image:
    """Render one line.

    Args:
        text: The text; scaled down if it is too long.
        font: A name from `FONTS`; handwriting fonts get jitter, slant, wobble and worn, ruled or squared paper.
        rng: Source of every random choice.

    Returns:
        An RGB image of `LINE_SIZE`.
    """
    handwriting = font not in PRINT_FONTS
    mask = _draw_text(rng, text, font, handwriting)
    if not handwriting:
        grey, black = rng.randint(225, 255), rng.randint(0, 60)
        page = Image.composite(
            Image.new("RGB", LINE_SIZE, (black,) * 3), Image.new("RGB", LINE_SIZE, (grey,) * 3), mask
        )
        return _age(rng, page) if rng.random() < 0.5 else page
    paper = _draw_paper(rng)
    ink = (rng.randint(0, 70), rng.randint(0, 70), rng.randint(0, 120))
    return _age(rng, Image.composite(Image.new("RGB", LINE_SIZE, ink), paper, mask))


def generate_lines(
    style: str = "handwriting",
    *,
    seed: int = 0,
    scripts: tuple[str, ...] = ("latin", "russian"),
    min_length: int = 1,
    max_length: int = 16,
    fonts: tuple[str, ...] | None = None,
) -> Iterator[SyntheticLine]:
    """Render an endless stream of lines.

    Args:
        style: `print`, `handwriting` or `unseen_handwriting` (the two held-out fonts).
        seed: Seed; different seeds give different lines.
        scripts: Scripts to draw from.
        min_length: Fewest characters.
        max_length: Most characters.
        fonts: Restrict the style to these of its fonts.

    Raises:
        ValueError: for an unknown style, script or font.
    """
    if style not in FONTS:
        raise ValueError(f"style={style!r} is not one of {', '.join(FONTS)}.")
    unknown = set(scripts) - set(LETTERS)
    if unknown:
        raise ValueError(f"scripts={scripts!r}: {', '.join(sorted(unknown))} is not one of {', '.join(LETTERS)}.")
    strangers = set(fonts or ()) - set(FONTS[style])
    if strangers:
        raise ValueError(f"fonts={fonts!r}: {', '.join(sorted(strangers))} is not one of {', '.join(FONTS[style])}.")
    rng = random.Random(f"{style}/{seed}")
    while True:
        script, font = rng.choice(scripts), rng.choice(fonts or FONTS[style])
        text = random_text(rng, script, min_length, max_length)
        yield SyntheticLine(render_line(text, font, rng), text, script, font)


def write_dataset(folder: str | Path, lines: Iterable[SyntheticLine]) -> Path:
    """Write lines as PNG files with a `metadata.jsonl` for `load_ocr_dataset`; returns its path."""
    folder = Path(folder)
    metadata, images = folder / METADATA_NAME, folder / IMAGES_FOLDER
    # An earlier table keeps its images until this one is whole.
    waiting = begin_waiting_folder(images)
    with write_then_rename(metadata) as partial, partial.open("w", encoding="utf-8") as file:
        for index, line in enumerate(lines):
            name = f"{index:06d}.png"
            line.image.save(waiting / name)
            row = {"image": f"{IMAGES_FOLDER}/{name}", "text": line.text, "script": line.script, "font": line.font}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        set_aside(metadata)
        move_waiting(images)
    metadata.with_name(f"{metadata.name}.old").unlink(missing_ok=True)
    return metadata
