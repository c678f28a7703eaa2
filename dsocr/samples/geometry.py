"""Image geometry of DeepSeek-OCR: the views of an image and their number of image tokens.

The arithmetic follows upstream's `infer` and `dynamic_preprocess` (modeling_deepseekocr.py, modeling_deepseekocr2.py).
transformers' own processors differ (they floor where upstream rounds, and allow 32 tiles), so this module cuts the
views itself, with Pillow alone, equal to upstream's to the pixel.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageOps

from dsocr.samples.line_wrapping import choose_rows, wrap_line


PAD_COLOUR = (127, 127, 127)
PATCH_SIZE = 16
DOWNSAMPLE = 4
V2_QUERIES = (144, 256)
# Layouts of an image on its views: upstream's; padded where upstream squeezes; a line broken into rows.
LAYOUTS = ("original", "pad", "wrap")


@cache
def _tile_grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    # Upstream sorts a set by area alone, so the set's iteration order decides between grids of equal area. Build the
    # set in upstream's order to get the same choice.
    grids = {
        (columns, rows)
        for n in range(min_tiles, max_tiles + 1)
        for columns in range(1, n + 1)
        for rows in range(1, n + 1)
        if min_tiles <= columns * rows <= max_tiles
    }
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


@dataclass(frozen=True)
class ImageGeometry:
    """Rules that turn an image into a global view and tiles.

    Attributes:
        version: `"v1"`, `"v2"` or `"unlimited"`.
        mode: `tiny`, `small`, `base`, `large` or `gundam`.
        base_size: Side of the square global view, pixels.
        keep_aspect: Pad the global view to the square (True) or squash the image into it (False).
        tile_size: Side of a square tile, pixels; 0 for a mode without tiles.
        min_tiles: Fewest tiles of a tiled image.
        max_tiles: Most tiles of a tiled image.
        patch_size: Side of a patch of the vision tower, pixels.
        layout: `original` is upstream's, to the pixel. `pad` pads where upstream squeezes, and so keeps the letters'
            shape. `wrap` pads too, and breaks an image more than twice as wide as high into rows on the global view,
            without tiles.

    Example:
        >>> geometry = image_geometry("v1", "gundam")
        >>> geometry.choose_grid(2000, 300), geometry.count_tokens(2000, 300)
        ((7, 1), 983)
    """

    version: str
    mode: str
    base_size: int
    keep_aspect: bool
    tile_size: int = 0
    min_tiles: int = 2
    max_tiles: int = 0
    patch_size: int = PATCH_SIZE
    layout: str = "original"

    def count_rows(self, width: int, height: int) -> int:
        """Number of rows of a wrapped image; 1 unless the layout is `wrap`."""
        return choose_rows(width, height) if self.layout == "wrap" else 1

    def choose_grid(self, width: int, height: int) -> tuple[int, int]:
        """The tile grid `(columns, rows)` of an image; `(1, 1)` means no tiles."""
        if not self.tile_size or (width <= self.tile_size and height <= self.tile_size):
            return (1, 1)
        if self.count_rows(width, height) > 1:
            return (1, 1)
        aspect, best, best_difference = width / height, (1, 1), math.inf
        for columns, rows in _tile_grids(self.min_tiles, self.max_tiles):
            difference = abs(aspect - columns / rows)
            wide_enough = width * height > 0.5 * self.tile_size**2 * columns * rows
            if difference < best_difference or (difference == best_difference and wide_enough):
                best, best_difference = (columns, rows), difference
        return best

    def count_tiles(self, width: int, height: int) -> int:
        """Number of tiles of an image; 0 if it has only a global view."""
        columns, rows = self.choose_grid(width, height)
        return 0 if (columns, rows) == (1, 1) else columns * rows

    def _queries(self, size: int) -> int:
        return math.ceil((size // self.patch_size) / DOWNSAMPLE)

    def _view_tokens(self, size: int) -> int:
        # v2's encoder has 144 or 256 queries; the patch count decides (native DeepseekOcr2VisionModel).
        return V2_QUERIES[0] if self._queries(size) ** 2 <= V2_QUERIES[0] else V2_QUERIES[1]

    def view_queries(self, size: int) -> int:
        """Number of feature vectors from the tower for a square view of `size` pixels."""
        return self._view_tokens(size) if self.version == "v2" else self._queries(size) ** 2

    def count_tokens(self, width: int, height: int) -> int:
        """Number of image tokens of an image of `width` x `height` pixels."""
        tiles = self.count_tiles(width, height)
        if self.version == "v2":
            return self._view_tokens(self.base_size) + 1 + (tiles * self._view_tokens(self.tile_size) if tiles else 0)
        queries = self._queries(self.base_size)
        local = self._queries(self.tile_size) if tiles else 0
        # Every row of the global view and of the tile mosaic ends in a newline token; one separator follows.
        columns, rows = self.choose_grid(width, height)
        return queries * (queries + 1) + 1 + rows * local * (columns * local + 1) * bool(tiles)

    def cut(self, image: Image.Image) -> "ImageViews":
        """Cut an RGB image into its views.

        Raises:
            ValueError: when the image is so elongated that its global view would be under one pixel high or wide.
        """
        grid, n_tokens = self.choose_grid(*image.size), self.count_tokens(*image.size)
        if self.layout == "wrap":
            image = wrap_line(image, PAD_COLOUR)
        image, padding = (image.getchannel(0), PAD_COLOUR[0]) if _is_grey(image) else (image, PAD_COLOUR)
        base = (self.base_size, self.base_size)
        if self.keep_aspect or self.layout != "original":
            _refuse_vanishing(image.size, self.base_size)
            global_view = ImageOps.pad(image, base, color=padding)
        else:
            global_view = image.resize(base)
        tiles = []
        if grid != (1, 1):
            columns, rows = grid
            size = self.tile_size
            whole = (columns * size, rows * size)
            squeezed = self.layout == "original"
            mosaic = _to_rgb(image.resize(whole) if squeezed else ImageOps.pad(image, whole, color=padding))
            tiles = [
                mosaic[row * size : (row + 1) * size, column * size : (column + 1) * size]
                for row in range(rows)
                for column in range(columns)
            ]
        return ImageViews(_to_rgb(global_view), tiles, grid, n_tokens)


def _is_grey(image: Image.Image) -> bool:
    """Whether the three bands of an RGB image are alike: one is resized then, in a third of the time, to the same pixels."""
    pixels = np.asarray(image)
    return bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all())


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Pixels `[height, width, 3]`; of one band a view that repeats it, without a copy."""
    pixels = np.asarray(image)
    return pixels if pixels.ndim == 3 else np.broadcast_to(pixels[..., None], (*pixels.shape, 3))


@dataclass(frozen=True)
class ImageViews:
    """The views of one image, as uint8 in 0..255.

    Attributes:
        global_view: `[base_size, base_size, 3]`.
        tiles: Row by row, each `[tile_size, tile_size, 3]`; empty when the image has no tiles.
        grid: `(columns, rows)`, `(1, 1)` without tiles.
        n_tokens: Number of image tokens.
    """

    global_view: np.ndarray
    tiles: list[np.ndarray]
    grid: tuple[int, int]
    n_tokens: int


def _refuse_vanishing(size: tuple[int, int], base_size: int) -> None:
    width, height = size
    if round(min(size) / max(size) * base_size) < 1:
        raise ValueError(
            f"an image of {width}x{height} pixels would be less than one pixel across in a {base_size} pixel view; "
            "cut it into shorter pieces"
        )


_GEOMETRIES = {
    "v1": {
        "tiny": ImageGeometry("v1", "tiny", 512, keep_aspect=False),
        "small": ImageGeometry("v1", "small", 640, keep_aspect=False),
        "base": ImageGeometry("v1", "base", 1024, keep_aspect=True),
        "large": ImageGeometry("v1", "large", 1280, keep_aspect=True),
        "gundam": ImageGeometry("v1", "gundam", 1024, keep_aspect=True, tile_size=640, max_tiles=9),
    },
    # v2's encoder has queries for 768 and 1024 pixels only.
    "v2": {
        "small": ImageGeometry("v2", "small", 768, keep_aspect=False),
        "base": ImageGeometry("v2", "base", 1024, keep_aspect=True),
        "gundam": ImageGeometry("v2", "gundam", 1024, keep_aspect=True, tile_size=768, max_tiles=6),
    },
}
# Unlimited-OCR's own image processor in transformers: v1's geometry with up to 32 tiles.
_GEOMETRIES["unlimited"] = {
    mode: replace(geometry, version="unlimited", max_tiles=32 if geometry.tile_size else 0)
    for mode, geometry in _GEOMETRIES["v1"].items()
}
MODES = {version: tuple(modes) for version, modes in _GEOMETRIES.items()}


def image_geometry(
    version: str, mode: str, *, size_divisor: int = 1, patch_size: int = PATCH_SIZE, layout: str = "original"
) -> ImageGeometry:
    """Look up the geometry of a mode.

    Args:
        version: `"v1"`, `"v2"` or `"unlimited"`.
        mode: One of `MODES[version]`.
        size_divisor: Divides every size; this project's tiny models use 16.
        patch_size: Side of a patch of the vision tower, pixels.
        layout: One of `LAYOUTS`.

    Raises:
        ValueError: for an unknown version, mode or layout.
    """
    if version not in _GEOMETRIES:
        raise ValueError(f"version={version!r} is not one of {sorted(_GEOMETRIES)}.")
    if mode not in _GEOMETRIES[version]:
        raise ValueError(
            f"image_mode={mode!r} does not exist for {version}; choose one of {', '.join(MODES[version])}."
        )
    if layout not in LAYOUTS:
        raise ValueError(f"image_layout={layout!r} is not one of {', '.join(LAYOUTS)}.")
    geometry = _GEOMETRIES[version][mode]
    return replace(
        geometry,
        base_size=geometry.base_size // size_divisor,
        tile_size=geometry.tile_size // size_divisor,
        patch_size=patch_size,
        layout=layout,
    )


@dataclass(frozen=True)
class ImageFeatures:
    """Vision features of one image, used in place of `ImageViews`.

    Attributes:
        global_view: `[queries, width]`.
        tiles: `[n_tiles, tile_queries, width]`, row by row; `n_tiles` may be 0.
        grid: `(columns, rows)`, `(1, 1)` without tiles.
        n_tokens: Number of image tokens.
    """

    global_view: torch.Tensor
    tiles: torch.Tensor
    grid: tuple[int, int]
    n_tokens: int
