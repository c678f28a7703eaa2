"""How fast the vision tower computes features, and how fast a cache of them is built from image files."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from dsocr.data.synthetic import generate_lines
from dsocr.lab.gpu_check.batches import IMAGE_MODE
from dsocr.lab.gpu_check.setup import CheckSetup, Figures, Probe
from dsocr.lab.training_step import timestamp
from dsocr.models import freeze_vision
from dsocr.models.sam_attention import split_global_attention
from dsocr.samples.vision_cache.building import build_feature_cache
from dsocr.samples.vision_cache.options import CacheOptions


# Views at a time, and how much larger than rendered ones the lines of a scan are.
_GLOBAL_VIEWS, _TILES, _ENLARGED = 8, 32, 8


def _time_tower(setup: CheckSetup, model: PreTrainedModel, side: int, views: int) -> Figures:
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(views, 3, side, side, generator=generator) * 2 - 1).to(setup.place, model.dtype)
    seconds = []
    with torch.inference_mode():
        for _ in range(setup.repeats + 1):
            start = timestamp(setup.place)
            model.model.vision_tower(pixels)
            seconds.append(timestamp(setup.place) - start)
    return {"side": side, "views": views, "views_per_second": views / statistics.median(seconds[1:])}


def _build_cache(setup: CheckSetup, model: PreTrainedModel) -> Figures:
    processor = setup.processor(IMAGE_MODE)
    enlarged = _ENLARGED if setup.size == "full" else 1
    with tempfile.TemporaryDirectory() as folder:
        names = []
        stream = generate_lines("handwriting", seed=3, min_length=8, max_length=16)
        for index, line in enumerate(itertools.islice(stream, setup.images)):
            names.append(str(Path(folder) / f"{index}.jpg"))
            image = line.image.resize((line.image.width * enlarged, line.image.height * enlarged))
            image.save(names[-1], quality=90)
        dataset = Dataset.from_dict({"image": names})
        start = time.perf_counter()
        cache = build_feature_cache(model, processor, [dataset], CacheOptions(), progress=False)
        seconds = time.perf_counter() - start
        if cache is None:
            raise RuntimeError("there was no room for the features")
        tokens = sum(cache.store.get(cache.known[name].key).n_tokens for name in names)
    return {"images": len(names), "images_per_second": len(names) / seconds, "image_tokens": tokens / len(names)}


def vision_probes(setup: CheckSetup) -> Iterator[Probe]:
    """Global views and tiles through the tower, and a cache of rendered lines from their files."""
    model = setup.model()
    freeze_vision(model)
    split_global_attention(model)
    model.eval()
    geometry = setup.processor(IMAGE_MODE).geometry
    few = 1 if setup.size == "full" else 4
    yield "tower, global views", partial(_time_tower, setup, model, geometry.base_size, _GLOBAL_VIEWS // few)
    yield "tower, tiles", partial(_time_tower, setup, model, geometry.tile_size, _TILES // few)
    yield "building the cache", partial(_build_cache, setup, model)
