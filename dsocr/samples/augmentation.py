"""Vary line images for small training sets: slant, turn, size, light, blur, noise, and a gentle wave of the paper.

Pillow does the work in the DataLoader's workers. An image keeps its size, so its token count stays valid. Uncovered
parts take the paper's colour.
"""

import math
import random

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from dsocr.data.importers.cutting import paper_colour


MAX_TURN_DEGREES = 2.0
MAX_SLANT = 0.2
SCALES = (0.88, 1.05)
LIGHT = (0.8, 1.15)
CONTRAST = (0.75, 1.2)
MAX_BLUR = 0.04
MAX_NOISE = 10.0
WAVE = 0.04
# Share of varied images; a quarter stays unchanged.
PROBABILITY = 0.75


def _warp(image: Image.Image, rng: random.Random, paper: tuple[int, int, int]) -> Image.Image:
    """Turn, slant, scale and shift about the centre, in one step."""
    width, height = image.size
    # Turn long lines less: even a few degrees would push their ends out of the image.
    turn = math.radians(rng.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES)) * min(1.0, 4 * height / width)
    slant, scale = rng.uniform(-MAX_SLANT, MAX_SLANT), 1 / rng.uniform(*SCALES)
    cosine, sine = scale * math.cos(turn), scale * math.sin(turn)
    a, b, d, e = cosine, sine + slant * cosine, -sine, cosine - slant * sine
    x, y = width / 2, height / 2
    shift_x, shift_y = rng.uniform(-0.01, 0.01) * width, rng.uniform(-0.05, 0.05) * height
    matrix = (a, b, x - a * x - b * y + shift_x, d, e, y - d * x - e * y + shift_y)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=paper)


def _wave(image: Image.Image, rng: random.Random) -> Image.Image:
    """Move columns up and down along a slow wave, like paper that does not lie flat."""
    width, height = image.size
    pixels = np.asarray(image)
    phase, length = rng.uniform(0, 2 * math.pi), rng.uniform(2, 6) * height
    offsets = np.rint(rng.uniform(0, WAVE) * height * np.sin(2 * math.pi * np.arange(width) / length + phase))
    rows = np.clip(np.arange(height)[:, None] + offsets[None, :].astype(int), 0, height - 1)
    return Image.fromarray(pixels[rows, np.arange(width)[None, :]])


def _light(image: Image.Image, rng: random.Random) -> Image.Image:
    """Change brightness and contrast, and add a shadow across the line and noise."""
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(*CONTRAST))
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(*LIGHT))
    shade = 1 + rng.uniform(-0.12, 0.12) * np.linspace(-1, 1, image.width)[None, :, None]
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, MAX_NOISE), (*image.size[::-1], 1))
    return Image.fromarray(np.clip(np.asarray(image) * shade + noise, 0, 255).astype(np.uint8))


def augment_image(image: Image.Image, rng: random.Random) -> Image.Image:
    """Vary the image of a line.

    Args:
        image: RGB image.
        rng: Source of every random choice; the same state gives the same pixels.

    Returns:
        RGB image of the same size; one in four is returned unchanged.
    """
    if rng.random() > PROBABILITY:
        return image
    pixels = np.asarray(image).reshape(-1, 3)
    varied = _warp(image, rng, paper_colour(pixels[:: max(1, len(pixels) // 4096)]))
    if rng.random() < 0.5:
        varied = _wave(varied, rng)
    if rng.random() < 0.3:
        varied = varied.filter(ImageFilter.GaussianBlur(rng.uniform(0, MAX_BLUR) * image.height))
    return _light(varied, rng)
