"""The speed of training steps: by part and by lever, and as batches, tiles, answers and the feature cache grow."""

import random
import statistics
import tempfile
import time
from dataclasses import replace
from typing import Any

import torch
from tqdm.auto import tqdm

from dsocr.common.machine import half_dtype
from dsocr.lab.flops import count_step_flops
from dsocr.lab.levers import ALL, PATHS, PLAIN
from dsocr.lab.random_models import StepOptions, image_with_tiles
from dsocr.lab.training_step import TrainingStep
from dsocr.samples.geometry import ImageFeatures, ImageGeometry
from dsocr.samples.vision_cache.store import DiskStore
from dsocr.samples.vision_cache.tower import feature_width


# One view without tiles: every image costs the same, and growth measures tiles by themselves.
IMAGE_MODE = "base"
# The smallest batch that is one, of long lines: the plain path of the full model then needs 9 GB (v1, CPU).
BATCH_SIZE, ANSWER_TOKENS = 2, 200
# Small enough that a CPU runs the mid size in minutes; a thousand cached images of it take a gigabyte on the disk.
GROWN_BATCHES = (1, 2, 4)
GROWN_TILES = (0, 2, 6, 9)
GROWN_ANSWERS = (50, 200, 800)
GROWN_SAMPLES = (100, 1000)
_SAMPLES_PER_FILE = 64
_MOST_LOOKUPS = 500


def benchmark_step(geometry: ImageGeometry, size: str, device: torch.device) -> StepOptions:
    """The step that is measured, for a model of a size on a device.

    Args:
        geometry: Image geometry of the model in `IMAGE_MODE`.
        size: One of `SIZES`.
        device: Device of the model.
    """
    on_gpu = device.type == "cuda"
    return StepOptions(
        geometry,
        image_with_tiles(geometry, 0),
        batch_size=BATCH_SIZE,
        answer_tokens=ANSWER_TOKENS,
        # A GPU's own type, as in training. On a CPU the type of the released weights; the tiny model is made in float32,
        # which runs fast on any CPU.
        dtype=half_dtype() if on_gpu else torch.float32 if size == "tiny" else torch.bfloat16,
        # Checkpointing buys memory with time. Memory is short on a GPU, where the recipes use it, and not on a CPU.
        checkpointing=on_gpu,
    )


def measure_training(step: TrainingStep, repeats: int, matrix_rate: float) -> dict[str, dict[str, Any]]:
    """Measure a step on every path of `PATHS`.

    Each round runs every path once, so that a machine that slows down slows all paths.

    Args:
        step: The step.
        repeats: Timed rounds, after one that is not timed.
        matrix_rate: Operations per second of the device in the step's type, see `measure_matrix_rate`.

    Returns:
        By path (`plain`, each lever, `all`): `samples_per_second`, `image_tokens_per_second`,
        `text_tokens_per_second`, `seconds` by part (medians), `ratio` of samples/s to the plain path (median over the
        rounds), `peak_bytes`, `model_flops`, `mfu` (share of the matrix rate, 0..1), `loss`.
    """
    options = step.options
    flops = count_step_flops(step.model.config, options)
    image_tokens = options.geometry.count_tokens(*options.image_size) * options.batch_size
    times: dict[str, list[dict[str, float]]] = {name: [] for name in PATHS}
    rounds = tqdm(range(repeats + 1), desc="Measuring training", leave=False)
    for _ in rounds:
        for name, levers in PATHS.items():
            rounds.set_postfix_str(name)
            times[name].append(step.run(levers))
    rows = {}
    for name, levers in PATHS.items():
        timed = times[name][1:]
        seconds = {part: statistics.median(row[part] for row in timed) for part in timed[0]}
        loss = seconds.pop("loss")
        needed = flops.total - (flops.vision if "features" in levers else 0)
        ratios = [plain["step"] / row["step"] for plain, row in zip(times[PLAIN][1:], timed, strict=True)]
        rows[name] = {
            "samples_per_second": options.batch_size / seconds["step"],
            "image_tokens_per_second": image_tokens / seconds["step"],
            "text_tokens_per_second": options.batch_size * options.answer_tokens / seconds["step"],
            "seconds": seconds,
            "ratio": statistics.median(ratios),
            "peak_bytes": step.measure_peak_bytes(levers),
            "model_flops": needed,
            "mfu": needed / seconds["step"] / matrix_rate,
            "loss": loss,
        }
    return rows


def _grow_cache(step: TrainingStep, samples: int) -> dict[str, float]:
    """Store the features of so many images in files: images found per second, in any order, and bytes on the disk."""
    geometry, dtype = step.options.geometry, step.options.dtype
    queries, width = geometry.view_queries(geometry.base_size), feature_width(step.model)
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        store = DiskStore(folder)
        empty = torch.empty(0, 0, width, dtype=dtype)
        for start in range(0, samples, _SAMPLES_PER_FILE):
            count = min(_SAMPLES_PER_FILE, samples - start)
            made = torch.randn(count, queries, width).to(dtype)
            store.add({str(start + i): ImageFeatures(made[i].clone(), empty, (1, 1), 0) for i in range(count)})
        order = [str(rng.randrange(samples)) for _ in range(min(samples, _MOST_LOOKUPS))]
        begin = time.perf_counter()
        for key in order:
            # The clone reads the mapped file, as making a batch would.
            store.get(key).global_view.clone()
        seconds = time.perf_counter() - begin
    return {"samples_per_second": len(order) / seconds, "peak_bytes": samples * queries * width * dtype.itemsize}


def measure_growth(step: TrainingStep, tiled: ImageGeometry) -> list[dict[str, Any]]:
    """Grow batch, tiles an image, answer length and cached samples, one at a time, with all levers.

    Args:
        step: The step; the growing value alone differs from its options.
        tiled: Geometry of the same model in an image mode with tiles.

    Returns:
        Rows of `grown`, `value`, `samples_per_second`, `peak_bytes`; one timed step each, after one that is not timed.
    """
    options = step.options
    grown = [("batch", batch, replace(options, batch_size=batch)) for batch in GROWN_BATCHES]
    for tiles in GROWN_TILES:
        if tiles <= tiled.max_tiles:
            changed = replace(options, geometry=tiled, image_size=image_with_tiles(tiled, tiles))
            grown.append(("tiles an image", tiles, changed))
    grown += [("answer tokens", answer, replace(options, answer_tokens=answer)) for answer in GROWN_ANSWERS]
    rows = []
    for name, value, changed in tqdm(grown, desc="Measuring growth", leave=False):
        step.resize(changed)
        step.run(PATHS[ALL])
        seconds = step.run(PATHS[ALL])["step"]
        figures = {
            "samples_per_second": changed.batch_size / seconds,
            "peak_bytes": step.measure_peak_bytes(PATHS[ALL]),
        }
        rows.append({"grown": name, "value": value} | figures)
    step.resize(options)
    name = "samples in the cache, found on disk"
    return rows + [{"grown": name, "value": samples} | _grow_cache(step, samples) for samples in GROWN_SAMPLES]
