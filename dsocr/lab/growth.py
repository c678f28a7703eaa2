"""How samples/s and memory change when one thing grows, with all levers on."""

import random
import tempfile
import time
from dataclasses import replace

import torch
from tqdm.auto import tqdm

from dsocr.lab.levers import ALL
from dsocr.lab.shapes import image_with_tiles
from dsocr.lab.training_speed import TrainingOptions, measure_training
from dsocr.samples.geometry import ImageFeatures, image_geometry
from dsocr.samples.vision_cache.store import DiskStore


BATCHES = (1, 2, 4)
TILES = (0, 2, 6, 9)
ANSWERS = (50, 200, 800)
SAMPLES = (100, 1000)
CACHE = "samples in the cache, found on disk"
_PER_FILE = 64


def _with_tiles(options: TrainingOptions, tiles: int) -> TrainingOptions:
    given = options.geometry
    divisor = image_geometry(given.version, given.mode).base_size // given.base_size
    geometry = image_geometry(given.version, "gundam", size_divisor=divisor, patch_size=given.patch_size)
    return replace(options, geometry=geometry, image_size=image_with_tiles(geometry, tiles))


def _grow_cache(options: TrainingOptions, samples: int) -> dict[str, float]:
    """Features of so many images in files: how many a second are found in any order, and what they take."""
    geometry = options.geometry
    vision = options.config.vision_config
    queries = geometry.view_queries(geometry.base_size)
    width = vision.encoder_config.hidden_size
    if geometry.version != "v2":
        # v1's projector takes both encoders' features.
        width += vision.sam_config.downsample_channels[-1]
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        store = DiskStore(folder)
        empty = torch.empty(0, 0, width, dtype=options.dtype)
        for start in range(0, samples, _PER_FILE):
            count = min(_PER_FILE, samples - start)
            made = torch.randn(count, queries, width).to(options.dtype)
            store.add({str(start + i): ImageFeatures(made[i].clone(), empty, (1, 1), 0) for i in range(count)})
        order = [str(rng.randrange(samples)) for _ in range(min(samples, 500))]
        begin = time.perf_counter()
        for key in order:
            # Touched, as a batch would.
            store.get(key).global_view.clone()
        seconds = time.perf_counter() - begin
    return {
        "samples_per_second": len(order) / seconds,
        "peak_bytes": samples * queries * width * options.dtype.itemsize,
    }


def measure_growth(options: TrainingOptions, device: torch.device, *, matrix_rate: float) -> list[dict]:
    """Grow batch, tiles an image, answer length and cached samples, one at a time.

    Args:
        options: What does not grow; image mode base, and gundam while the tiles grow.
        device: Where.
        matrix_rate: See `measure_training`.

    Returns:
        Rows of `grown`, `value`, `samples_per_second`, `peak_bytes`.
    """
    steps = [("batch", batch, replace(options, batch_size=batch)) for batch in BATCHES]
    most = image_geometry(options.geometry.version, "gundam").max_tiles
    steps += [("tiles an image", tiles, _with_tiles(options, tiles)) for tiles in TILES if tiles <= most]
    steps += [("answer tokens", answer, replace(options, answer_tokens=answer)) for answer in ANSWERS]
    rows = []
    for grown, value, changed in tqdm(steps, desc="Growing"):
        measured = measure_training(changed, device, matrix_rate=matrix_rate, only=ALL, progress=False)[ALL]
        figures = {key: measured[key] for key in ("samples_per_second", "peak_bytes")}
        rows.append({"grown": grown, "value": value} | figures)
    rows += [{"grown": CACHE, "value": samples} | _grow_cache(options, samples) for samples in SAMPLES]
    return rows
