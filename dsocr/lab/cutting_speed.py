"""The time to make a line's pixels on one thread, against the plain path: three bands, normalised by the worker."""

import statistics
import time

import numpy as np
import torch
from PIL import Image, ImageOps

from dsocr.samples.batch import normalize_pixels, stack_views
from dsocr.samples.geometry import PAD_COLOUR, ImageGeometry, image_geometry


# A line of a scan: eight tiles in v1's largest mode.
LINE_SIZE = (1600, 200)
# Blocks of memory that Pillow keeps, as `dsocr.common.machine.prepare_process` sets it and by default.
_KEPT, _DEFAULT = 8, 0


def _plain(image: Image.Image, geometry: ImageGeometry) -> torch.Tensor:
    """Tiles and global view in bfloat16, as the collator made them at first."""
    columns, rows = geometry.choose_grid(*image.size)
    side = geometry.tile_size
    mosaic = np.asarray(image.resize((columns * side, rows * side)))
    tiles = [
        mosaic[row * side : (row + 1) * side, column * side : (column + 1) * side]
        for row in range(rows)
        for column in range(columns)
    ]
    view = np.asarray(ImageOps.pad(image, (geometry.base_size,) * 2, color=PAD_COLOUR))
    normalize_pixels(stack_views([view]), torch.bfloat16)
    return normalize_pixels(stack_views(tiles), torch.bfloat16)


def _now(image: Image.Image, geometry: ImageGeometry) -> torch.Tensor:
    views = geometry.cut(image)
    stack_views([views.global_view])
    return stack_views(views.tiles)


def measure_cutting(repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds from an opened line of 1600 x 200 pixels to a batch's pixels (v1, image mode gundam), one thread.

    Args:
        repeats: Rounds of both paths in turn, after one that is not timed.

    Returns:
        For a `colour` and a `grey` line: `plain_ms`, `ms` (medians) and `ratio` (median over the rounds).

    Raises:
        RuntimeError: when both paths do not give the same pixels.
    """
    geometry = image_geometry("v1", "gundam")
    noise = np.random.default_rng(0).integers(0, 256, (*LINE_SIZE[::-1], 3), dtype=np.uint8)
    lines = {"colour": Image.fromarray(noise), "grey": Image.fromarray(noise[..., 0]).convert("RGB")}
    threads, kept = torch.get_num_threads(), Image.core.get_blocks_max()
    torch.set_num_threads(1)
    results = {}
    try:
        for name, image in lines.items():
            if not torch.equal(_plain(image, geometry), normalize_pixels(_now(image, geometry), torch.bfloat16)):
                raise RuntimeError(f"the plain path cuts a {name} line into other pixels")
            rounds = []
            for _ in range(repeats):
                seconds = []
                for path, blocks in ((_plain, _DEFAULT), (_now, _KEPT)):
                    Image.core.set_blocks_max(blocks)
                    # The first image of each round fills what Pillow keeps.
                    path(image, geometry)
                    start = time.perf_counter()
                    path(image, geometry)
                    seconds.append(time.perf_counter() - start)
                rounds.append(seconds)
            plain, now = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
            ratio = statistics.median(old / new for old, new in rounds)
            results[name] = {"plain_ms": plain, "ms": now, "ratio": ratio}
    finally:
        torch.set_num_threads(threads)
        Image.core.set_blocks_max(kept)
    return results
