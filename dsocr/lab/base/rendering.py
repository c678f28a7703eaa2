"""Rendered lines for the base: any font, laid on a whole number of tiles, in a few milliseconds.

`dsocr.data.synthetic` draws letter by letter on small pictures of one size. Here words are drawn whole (script fonts join
their letters), and slant, turn, scale and crop are one affine transform onto the tiles' own pixels.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from dsocr.lab.base.hands import Hand, hand_languages, has_letter, load_hand
from dsocr.lab.base.paper import bend, lay_ink
from dsocr.lab.base.shape import TILE_SIZE
from dsocr.lab.base.texts import LANGUAGES, SHARES, random_text


MAX_COLUMNS = 9
MIN_COLUMNS = 2
# Each tile column gives the auxiliary reader twelve outputs.
LETTERS_PER_COLUMN = 10


@dataclass(frozen=True)
class TrainingLine:
    """One line.

    Attributes:
        image: Grey or RGB image.
        text: What it says.
        kind: `print`, `hand`, `unseen` or `real`.
        origin: Font, or source and writer.
    """

    image: Image.Image
    text: str
    kind: str
    origin: str

    @property
    def grid(self) -> tuple[int, int]:
        """Tile columns and rows of an image that was laid on whole tiles."""
        return self.image.width // TILE_SIZE, self.image.height // TILE_SIZE


def choose_columns(width: float, height: float) -> int:
    """The number of tiles in a row that comes nearest to an image's aspect."""
    return min(MAX_COLUMNS, max(MIN_COLUMNS, round(width / height)))


def _draw_words(
    rng: random.Random, text: str, hand: Hand, points: int
) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """Ink on a canvas with room around, and the box `(left, top, right, bottom)` of the line's own ink."""
    font = load_hand(hand, points)
    loose = hand.kind != "print"
    room = 2 * points
    length = font.getlength(text)
    canvas = Image.new("L", (round(length * 1.25) + 2 * room, 5 * points), 0)
    draw = ImageDraw.Draw(canvas)
    y = 2 * points
    x, space = float(room), font.getlength(" ")
    gap = space * rng.uniform(0.8, 2.2) if loose else space
    gap = min(gap, space + 0.25 * length / max(1, text.count(" ")))
    wobble = rng.uniform(0, 0.06) * points if loose else 0
    for word in text.split(" "):
        draw.text((x, y + rng.uniform(-wobble, wobble)), word, fill=255, font=font)
        x += font.getlength(word) + gap * (rng.uniform(0.85, 1.15) if loose else 1)
    box = canvas.getbbox()
    if box is None:
        raise ValueError(f"font {hand.name} draws nothing for {text!r}")
    return canvas, box


def _add_neighbours(rng: random.Random, canvas: Image.Image, text: str, hand: Hand, points: int) -> None:
    """Write the same letters in another order above and below, so near that what hangs down or stands up shows."""
    draw, font = ImageDraw.Draw(canvas), load_hand(hand, points)
    pitch = rng.uniform(1.0, 1.5) * points
    words = text.split(" ")
    for side in (-1, 1):
        if rng.random() < 0.7:
            other = " ".join(rng.sample(words, len(words)))
            start = 2 * points + rng.uniform(-2, 1) * points
            draw.text((start, 2 * points + side * pitch), other, fill=rng.randint(120, 255), font=font)


def _ease(strength: float) -> float:
    """How far print has come from its easiest form, in 0..1: earlier than hands from theirs."""
    return min(1.0, strength / 0.4)


def _lay_on_tiles(
    rng: random.Random, canvas: Image.Image, box: tuple[int, int, int, int], points: int, loose: bool, strength: float
) -> np.ndarray:
    """Crop, slant, turn and scale onto `[80, 80 * columns]`, 0..255."""
    left, top, right, bottom = box
    slant = strength * (rng.uniform(-0.25, 0.45) if loose else rng.uniform(0, 0.3) * (rng.random() < 0.2))
    height = bottom - top
    # The line's slanted ink is wider than its box.
    lean = abs(slant) * height / 2
    margins = [rng.uniform(0.02, 0.05 + 0.4 * _ease(strength)) * points for _ in range(2)]
    low = max(points * rng.uniform(0.75, 1.0), height + margins[0] + margins[1])
    sides = [rng.uniform(0.05, 0.5) * points + lean for _ in range(2)]
    wide = right - left + sides[0] + sides[1]
    stretch = rng.uniform(0.8, 1.3) if loose else rng.uniform(0.9, 1.15)
    columns = choose_columns(wide * stretch, low)
    size = (columns * TILE_SIZE, TILE_SIZE)
    # Few words on two tiles would be stretched: paper to the right instead, as a short line has.
    wide = max(wide, 0.75 * columns * low / stretch)
    scale_x, scale_y = wide / size[0], low / size[1]
    turn = math.radians(rng.uniform(-1.2, 1.2)) * min(1.0, 5 / columns) if loose else 0.0
    centre_x, centre_y = left - sides[0] + wide / 2, top - margins[0] + low / 2
    # Pixel (x, y) of the tiles is taken from the canvas at (a x + b y + c, d x + e y + f); the centres meet.
    a, b = scale_x, slant * scale_y
    d, e = scale_x * math.sin(turn), scale_y
    c = centre_x - a * size[0] / 2 - b * size[1] / 2
    f = centre_y - d * size[0] / 2 - e * size[1] / 2
    return np.asarray(canvas.transform(size, Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR))


def render_text(rng: random.Random, text: str, hand: Hand, strength: float = 1.0) -> TrainingLine:
    """Render one line onto whole tiles.

    Args:
        rng: Source of every choice.
        text: The text.
        hand: Its font. Print stays clean; hands get slant, waves, neighbours, ink and paper.
        strength: How strongly hands are varied and how often print is worn, in 0..1.
    """
    loose = hand.kind != "print"
    points = rng.randint(38, 58)
    canvas, box = _draw_words(rng, text, hand, points)
    if loose and rng.random() < 0.35 * strength:
        _add_neighbours(rng, canvas, text, hand, points)
    if rng.random() > _ease(strength):
        # The first lines of all stand on one baseline, at one scale.
        box = (box[0], 2 * points, box[2], 2 * points + sum(load_hand(hand, points).getmetrics()))
    mask = _lay_on_tiles(rng, canvas, box, points, loose, strength)
    if loose:
        mask = bend(rng, mask, 0.07 * strength)
        if rng.random() < 0.5:
            mask = np.asarray(Image.fromarray(mask).filter(ImageFilter.BoxBlur(rng.uniform(0.3, 1.0))))
    worn = rng.random() < (0.85 if loose else 0.25 * strength)
    return TrainingLine(lay_ink(rng, mask, worn=worn), text, hand.kind, hand.name)


class Renderer:
    """Draws texts and hands at random.

    Args:
        hands: Fonts to draw from, all of one kind.
    """

    def __init__(self, hands: tuple[Hand, ...]):
        self._by_language = {
            language: [hand for hand in hands if language in hand_languages(hand)] for language in LANGUAGES
        }

    def render(
        self, rng: random.Random, min_length: int, max_length: int, random_letters: float, strength: float = 1.0
    ) -> TrainingLine:
        """One line; lengths as in `random_text`, which says what `random_letters` is."""
        while True:
            language = rng.choices(LANGUAGES, SHARES)[0]
            if not self._by_language[language]:
                continue
            hand = rng.choice(self._by_language[language])
            text = random_text(rng, language, min_length, max_length, random_letters)
            if not all(has_letter(hand, letter) for letter in text):
                continue
            line = render_text(rng, text, hand, strength)
            if len(text) <= LETTERS_PER_COLUMN * line.grid[0]:
                return line
