"""Filling the cache: every image once, in batches, by all processes, before the first epoch."""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dsocr.batches import normalize_pixels
from dsocr.environment import process_rank
from dsocr.features.cache import FeatureCache, hash_bytes
from dsocr.features.store import DiskStore, ImageFeatures, MemoryStore
from dsocr.features.tower import accept_features, feature_width, find_tower, tower_fingerprint
from dsocr.image_files import open_image, read_image_size
from dsocr.images import ImageGeometry, ImageViews
from dsocr.processor import OcrProcessor


logger = logging.getLogger(__name__)

# Share of the free disk that a cache may take.
_DISK_SHARE = 0.9
_IMAGES_PER_FILE = 64


@dataclass(frozen=True)
class CacheOptions:
    """Where features go.

    Attributes:
        folder: On disk, in this folder, which outlives the run; `None` lets the budget decide.
        fallback_folder: Folder to use when memory is not allowed.
        memory_bytes: Most that is kept in memory.
        in_memory: Whether memory is possible at all: with data loader workers or several processes it would be copied.
    """

    folder: str | Path | None
    fallback_folder: str | Path
    memory_bytes: float
    in_memory: bool = True


def feature_bytes(geometry: ImageGeometry, size: tuple[int, int], width: int, itemsize: int) -> int:
    """Bytes of the features of an image of that size."""
    queries = geometry.view_queries(geometry.base_size)
    queries += geometry.count_tiles(*size) * geometry.view_queries(geometry.tile_size)
    return queries * width * itemsize


def _identity(model: PreTrainedModel, geometry: ImageGeometry, dtype: torch.dtype) -> str:
    return hashlib.blake2b(f"{tower_fingerprint(model)} {geometry} {dtype}".encode(), digest_size=8).hexdigest()


def _image(place: tuple[Dataset, int]) -> Any:
    dataset, index = place
    return dataset[index]["image"]


def _look_at(source: Any) -> tuple[str, str | None, tuple[int, int, int], tuple[int, int]]:
    """Key, path, `(key, mtime, size)` and size in pixels of one image."""
    if isinstance(source, dict) and source.get("bytes") is not None:
        key = hash_bytes(source["bytes"])
        return key, None, (key, 0, 0), read_image_size(source)
    path = Path(source["path"] if isinstance(source, dict) else source)
    # Before reading, so that a change while it is read is seen later.
    stat = path.stat()
    key = hash_bytes(path.read_bytes())
    return key, str(path), (key, stat.st_mtime_ns, stat.st_size), read_image_size(source)


def _choose_store(
    options: CacheOptions, find_identity: Callable[[], str], needed: int
) -> MemoryStore | DiskStore | None:
    gib = needed / 2**30
    if options.folder is None and options.in_memory and needed <= options.memory_bytes:
        logger.info("vision features: %.3f GiB in memory", gib)
        return MemoryStore()
    if options.folder is None and options.in_memory:
        limit = options.memory_bytes / 2**30
        logger.info("vision features need %.3f GiB, more than --vision_cache_gib %g: on disk", gib, limit)
    folder, identity = Path(options.folder or options.fallback_folder), find_identity()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if path.is_dir() and path.name != identity]
        if others and not (folder / identity).exists():
            logger.info("%s holds features of another model or image mode (%s); computing anew", folder, others[0])
        store = DiskStore(folder / identity)
    except OSError as error:
        logger.warning("no vision features are kept: %s; images are looked at again in every epoch", error)
        return None
    free = shutil.disk_usage(folder).free
    held = sum(path.stat().st_size for path in store.folder.iterdir())
    if needed - held > _DISK_SHARE * free:
        logger.warning(
            "no vision features are kept: they need %.3f GiB and %s has %.3f GiB free; images are looked at again in every "
            "epoch. Give a roomier --vision_cache_dir, or a smaller --image_mode.",
            gib,
            folder,
            free / 2**30,
        )
        return None
    logger.info("vision features: %.3f GiB in %s", gib, store.folder)
    return store


@torch.inference_mode()
def compute_features(
    model: PreTrainedModel, views: list[ImageViews], dtype: torch.dtype, *, context=nullcontext
) -> list[ImageFeatures]:
    """What the tower makes of several images; all tiles of the batch go through it at once.

    Args:
        model: Native model or `PeftModel`.
        views: Their views.
        dtype: Type to keep.
        context: Makes the context that training runs the model in, autocast for example.

    Returns:
        Features on the CPU.
    """
    tower = find_tower(model)
    device, compute_dtype = next(tower.parameters()).device, model.dtype
    training = tower.training
    tower.eval()

    def run(images) -> torch.Tensor:
        with context():
            found = tower(normalize_pixels(images, compute_dtype).to(device)).last_hidden_state
        return found.to("cpu", dtype)

    try:
        whole = run([view.global_view for view in views])
        tiles = [tile for view in views for tile in view.tiles]
        tiled = run(tiles) if tiles else whole.new_zeros(0, 0, whole.shape[-1])
    finally:
        tower.train(training)
    counts = [len(view.tiles) for view in views]
    parts = torch.split(tiled, counts) if tiles else [tiled] * len(views)
    # Copies: a slice would keep the whole batch alive.
    return [
        ImageFeatures(one.clone(), part.clone(), view.grid, view.n_tokens)
        for one, part, view in zip(whole, parts, views, strict=True)
    ]


def _fill(
    store, sources: dict[str, tuple[Dataset, int]], model, processor, dtype, batch_size: int, context, progress: bool
) -> None:
    waiting: dict[str, ImageFeatures] = {}
    keys = list(sources)
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]

    def prepare(batch: list[str]) -> list[ImageViews]:
        return [processor.geometry.cut(open_image(_image(sources[key]))) for key in batch]

    bar = tqdm(total=len(keys), desc="Vision features", unit="img", disable=not progress, leave=False)
    with ThreadPoolExecutor(1) as pool, bar:
        for batch, views in zip(batches, pool.map(prepare, batches), strict=True):
            waiting |= dict(zip(batch, compute_features(model, views, dtype, context=context), strict=True))
            if len(waiting) >= _IMAGES_PER_FILE:
                store.add(waiting)
                waiting = {}
            bar.update(len(batch))
    if waiting:
        store.add(waiting)


def build_feature_cache(
    model: PreTrainedModel,
    processor: OcrProcessor,
    datasets: Iterable[Dataset],
    options: CacheOptions,
    *,
    dtype: torch.dtype | None = None,
    batch_size: int = 8,
    context=nullcontext,
    progress: bool = True,
) -> FeatureCache | None:
    """Compute the features of every image of some datasets, once; under a process group every process does its share.

    Args:
        model: Native model or `PeftModel`, on its device, with a frozen tower.
        processor: Its processor.
        datasets: Column `image`.
        options: Where features go.
        dtype: Type to keep; `None` takes the model's, so that nothing is rounded.
        batch_size: Images at a time.
        context: See `compute_features`.
        progress: Show a progress bar.

    Returns:
        The cache; `None` when there is no room for it, which is logged.
    """
    rank, ranks = process_rank()
    dtype = dtype or model.dtype
    width, needed = feature_width(model), 0
    known: dict[str, tuple[str, int, int]] = {}
    # Rows, not images: the images of a Hub dataset are bytes, which are not to be held all at once.
    sources: dict[str, tuple[Dataset, int]] = {}
    places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda place: _look_at(_image(place)), places)
        bar = tqdm(looks, total=len(places), desc="Reading images", unit="img", disable=not progress, delay=1)
        for (key, path, entry, size), place in zip(bar, places, strict=True):
            if path is not None:
                known[path] = entry
            if key not in sources:
                needed += feature_bytes(processor.geometry, size, width, dtype.itemsize)
                sources[key] = place
    # A digest of the whole tower, which only files need.
    store = _choose_store(options, lambda: _identity(model, processor.geometry, dtype), needed)
    problem = None if store is not None else "no room"
    if store is not None:
        missing = {key: source for key, source in sorted(sources.items(), key=lambda item: item[0]) if key not in store}
        share = dict(list(missing.items())[rank::ranks])
        if len(missing) < len(sources):
            logger.info("%d of %d images were computed before", len(sources) - len(missing), len(sources))
        try:
            _fill(store, share, model, processor, dtype, batch_size, context, progress and rank == 0)
        except OSError as error:
            problem = str(error)
            logger.warning(
                "no vision features are kept: %s. Images are looked at again in every epoch; free some space, or give "
                "another --vision_cache_dir.",
                error,
            )
    if ranks > 1:
        problems: list[str | None] = [None] * ranks
        dist.all_gather_object(problems, problem)
        problem = next((found for found in problems if found), None)
    if problem is not None:
        return None
    store.scan()
    accept_features(model)
    return FeatureCache(store, known)
