"""Paper and pen of rendered lines: stains and grain, ruled lines, ink, and how a scan blurs them. Cheap: NumPy on bytes."""

import random
from functools import cache

import numpy as np
from PIL import Image, ImageFilter


GRAINS = 24
_HEIGHT, _WIDTH = 80, 720


@cache
def _grains() -> np.ndarray:
    """Textures `[GRAINS, 80, 1440]` float32 of mean 0 and standard deviation 1: grain on slow stains, made once."""
    rng = np.random.default_rng(7)
    textures = np.empty((GRAINS, _HEIGHT, 2 * _WIDTH), np.float32)
    for index, texture in enumerate(textures):
        coarse = rng.normal(size=(4 + index % 5, 12 + 3 * (index % 7))).astype(np.float32)
        stains = np.asarray(Image.fromarray(coarse).resize((2 * _WIDTH, _HEIGHT), Image.Resampling.BICUBIC))
        grain = rng.normal(size=texture.shape).astype(np.float32)
        if index % 2:
            grain = np.float32(0.5) * (
                grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1) + np.roll(grain, (1, 1), (0, 1))
            )
        texture[:] = rng.uniform(0.2, 1.2) * stains + rng.uniform(0.3, 1) * grain
        texture /= texture.std()
    return textures


def pick_grain(rng: random.Random, size: tuple[int, int]) -> np.ndarray:
    """A piece of a texture, `[height, width]` float32; height is 80 at most, width 720."""
    width, height = size
    texture = _grains()[rng.randrange(GRAINS)]
    left = rng.randrange(2 * _WIDTH - width + 1)
    piece = texture[:height, left : left + width]
    return piece[::-1] if rng.random() < 0.5 else piece


def _rule(rng: random.Random, page: np.ndarray) -> None:
    """Draw ruled or squared paper's lines, in place."""
    height, width = page.shape
    depth, step = rng.uniform(15, 90), rng.randint(height // 3, height)
    slope = rng.uniform(-0.004, 0.004)
    columns = np.arange(width)
    for y in range(rng.randint(0, step), height, step):
        rows = np.clip(y + slope * (columns - width / 2), 0, height - 1).astype(int)
        page[rows, columns] -= depth
    if rng.random() < 0.35:
        page[:, rng.randint(0, step) :: step] -= depth


def lay_ink(rng: random.Random, mask: np.ndarray, *, worn: bool) -> Image.Image:
    """Ink on paper.

    Args:
        rng: Source of every choice.
        mask: Coverage of the ink, `[height, width]`, 0..255.
        worn: Paper of any tone with stains and ruled lines, faint or uneven ink; else nearly black on nearly white.

    Returns:
        Grey image, or RGB with a tint (a third of the worn ones).
    """
    height, width = mask.shape
    coverage = mask.astype(np.float32) / 255
    tone = rng.uniform(140, 255) if worn and rng.random() < 0.6 else rng.uniform(225, 255)
    page = np.full((height, width), tone, np.float32)
    if worn:
        page += rng.uniform(0, 9) * pick_grain(rng, (width, height))
        if rng.random() < 0.3:
            _rule(rng, page)
        # A pen's width and pressure: gain on the mask's soft edge, and slow change along the line.
        coverage = np.clip(coverage * rng.uniform(0.8, 2.2) - rng.uniform(0, 0.15), 0, 1)
        if rng.random() < 0.4:
            coverage *= 1 - rng.uniform(0, 0.5) * (0.5 + 0.5 * np.sin(np.arange(width) / rng.uniform(8, 60)))
        ink = rng.uniform(10, 60) if rng.random() < 0.6 else rng.uniform(40, 0.62 * tone)
    else:
        ink = rng.uniform(0, 60)
    page += coverage * (ink - page)
    if rng.random() < 0.5:
        page += rng.uniform(0, 7) * pick_grain(rng, (width, height))
    image = Image.fromarray(np.clip(page, 0, 255).astype(np.uint8))
    if rng.random() < (0.5 if worn else 0.2):
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 1.0)))
    if worn and rng.random() < 0.33:
        tint = [rng.uniform(0.82, 1.0) for _ in range(3)]
        return Image.merge("RGB", [image.point([round(value * part) for value in range(256)]) for part in tint])
    return image


def bend(rng: random.Random, pixels: np.ndarray, strength: float) -> np.ndarray:
    """Move columns up and down and along the line by slow waves: an uneven baseline, letters wider and narrower.

    Args:
        rng: Source of every choice.
        pixels: `[height, width]`.
        strength: Height of the waves as a share of the line's height.
    """
    height, width = pixels.shape
    columns = np.arange(width)

    def wave(amplitude: float, shortest: float) -> np.ndarray:
        length, phase = rng.uniform(shortest, 8) * height, rng.uniform(0, 6.28)
        return amplitude * np.sin(columns * (6.2832 / length) + phase)

    up = np.rint(wave(rng.uniform(0, strength) * height, 1.5)).astype(int)
    # The steepest slope stays under 1, so that the order of the columns is kept.
    along = np.clip(np.rint(columns + wave(rng.uniform(0, 0.9 * strength) * height, 1.0)), 0, width - 1).astype(int)
    rows = np.clip(np.arange(height)[:, None] + up[None, :], 0, height - 1)
    return pixels[rows, along[None, :]]
