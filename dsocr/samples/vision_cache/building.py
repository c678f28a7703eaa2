"""Fill the cache before the first epoch: every image once, in batches, shared among all processes."""

import hashlib
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from dsocr.common.machine import process_rank
from dsocr.data.image_files import measure_image_size, open_image
from dsocr.samples.batch import stack_views
from dsocr.samples.geometry import ImageFeatures, ImageGeometry, ImageViews
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.vision_cache.cache import FeatureCache, KnownFile, hash_bytes
from dsocr.samples.vision_cache.options import CacheOptions, open_store
from dsocr.samples.vision_cache.store import DiskStore, MemoryStore
from dsocr.samples.vision_cache.tower import extend_tower, feature_width, find_tower, tower_fingerprint


logger = logging.getLogger(__name__)

_IMAGES_PER_FILE = 64
# Of the files; a folder of an earlier format is another folder.
_FORMAT = 2

# Makes the context for a forward pass; training's own, with autocast for example.
MakeContext = Callable[[], AbstractContextManager]


@dataclass
class _Inventory:
    """The distinct images of some datasets.

    Attributes:
        sources: By key, the row of the image. Rows, not images: a Hub dataset stores images as bytes, and holding all
            of them could exhaust memory.
        known: By path, the identity of the file's content.
        sizes: By key, width and height in pixels.
    """

    sources: dict[str, tuple[Dataset, int]] = field(default_factory=dict)
    known: dict[str, KnownFile] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)


def feature_bytes(geometry: ImageGeometry, size: tuple[int, int], width: int, itemsize: int) -> int:
    """Bytes of the features of an image of the given size."""
    queries = geometry.view_queries(geometry.base_size)
    queries += geometry.count_tiles(*size) * geometry.view_queries(geometry.tile_size)
    return queries * width * itemsize


def _identity(model: PreTrainedModel, geometry: ImageGeometry, dtype: torch.dtype) -> str:
    name = f"{_FORMAT} {tower_fingerprint(model)} {geometry} {dtype}"
    return hashlib.blake2b(name.encode(), digest_size=8).hexdigest()


def _look_at(place: tuple[Dataset, int]) -> tuple[str, str | None, KnownFile, tuple[int, int]]:
    """Key, path, identity and size of one row's image; takes the size from the row if it was measured before."""
    dataset, index = place
    row = dataset[index]
    source = row["image"]
    size = (row["width"], row["height"]) if "width" in row else measure_image_size(source)
    if isinstance(source, dict) and source.get("bytes") is not None:
        key = hash_bytes(source["bytes"])
        return key, None, KnownFile(key, 0, 0), size
    path = Path(source["path"] if isinstance(source, dict) else source)
    # stat() before reading: if the file changes meanwhile, the stale mtime exposes it at the next lookup.
    stat = path.stat()
    key = hash_bytes(path.read_bytes())
    return key, str(path), KnownFile(key, stat.st_mtime_ns, stat.st_size), size


def _take_inventory(datasets: Iterable[Dataset], *, progress: bool) -> _Inventory:
    found = _Inventory()
    places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    with ThreadPoolExecutor() as pool:
        looks = pool.map(_look_at, places)
        bar = tqdm(looks, total=len(places), desc="Hashing images", unit="img", disable=not progress, delay=1)
        for (key, path, known, size), place in zip(bar, places, strict=True):
            if path is not None:
                found.known[path] = known
            found.sources.setdefault(key, place)
            found.sizes.setdefault(key, size)
    return found


@torch.inference_mode()
def compute_features(
    model: PreTrainedModel, views: list[ImageViews], dtype: torch.dtype, *, context: MakeContext = nullcontext
) -> list[ImageFeatures]:
    """Compute the features of several images; all their tiles go through the tower at once.

    Args:
        model: Native model or `PeftModel`.
        views: Views of the images.
        dtype: Dtype of the features.
        context: Makes the context for a forward pass; use training's own, with autocast for example.

    Returns:
        Features on the CPU.
    """
    extend_tower(model)
    tower = find_tower(model)
    device = next(tower.parameters()).device
    training = tower.training
    tower.eval()

    def run(images: list) -> torch.Tensor:
        with context():
            found = tower(stack_views(images).to(device)).last_hidden_state
        return found.to("cpu", dtype)

    try:
        whole = run([view.global_view for view in views])
        tiles = [tile for view in views for tile in view.tiles]
        tiled = run(tiles) if tiles else whole.new_zeros(0, 0, whole.shape[-1])
    finally:
        tower.train(training)
    counts = [len(view.tiles) for view in views]
    parts = torch.split(tiled, counts) if tiles else [tiled] * len(views)
    # Clone: a slice would keep the whole batch in memory.
    return [
        ImageFeatures(one.clone(), part.clone(), view.grid, view.n_tokens)
        for one, part, view in zip(whole, parts, views, strict=True)
    ]


def _fill(
    store: MemoryStore | DiskStore,
    sources: dict[str, tuple[Dataset, int]],
    model: PreTrainedModel,
    processor: OcrProcessor,
    dtype: torch.dtype,
    *,
    batch_size: int,
    context: MakeContext,
    progress: bool,
) -> None:
    """Compute features of images and store them, 64 images per file."""
    waiting: dict[str, ImageFeatures] = {}
    keys = list(sources)
    batches = [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]

    def cut(key: str) -> ImageViews:
        dataset, index = sources[key]
        return processor.geometry.cut(open_image(dataset[index]["image"]))

    bar = tqdm(total=len(keys), desc="Vision features", unit="img", disable=not progress, leave=False)
    with ThreadPoolExecutor(1) as pool, bar:
        prepared = pool.map(lambda batch: [cut(key) for key in batch], batches)
        for batch, views in zip(batches, prepared, strict=True):
            waiting |= dict(zip(batch, compute_features(model, views, dtype, context=context), strict=True))
            if len(waiting) >= _IMAGES_PER_FILE:
                store.add(waiting)
                waiting = {}
            bar.update(len(batch))
    if waiting:
        store.add(waiting)


def _share_of_rank(store: MemoryStore | DiskStore, inventory: _Inventory) -> dict[str, tuple[Dataset, int]]:
    """Select the images that this process has to compute."""
    rank, ranks = process_rank()
    missing = {
        key: place for key, place in sorted(inventory.sources.items(), key=lambda item: item[0]) if key not in store
    }
    total = len(inventory.sources)
    if len(missing) < total:
        logger.info("%d of %d images were computed before", total - len(missing), total)
    return dict(list(missing.items())[rank::ranks])


def _first_problem(problem: str | None) -> str | None:
    """The first problem of any process; every process gets the same answer."""
    _, ranks = process_rank()
    if ranks == 1:
        return problem
    problems: list[str | None] = [None] * ranks
    dist.all_gather_object(problems, problem)
    return next((found for found in problems if found), None)


def build_feature_cache(
    model: PreTrainedModel,
    processor: OcrProcessor,
    datasets: Iterable[Dataset],
    options: CacheOptions,
    *,
    batch_size: int = 8,
    context: MakeContext = nullcontext,
    progress: bool = True,
) -> FeatureCache | None:
    """Compute the features of every image of some datasets once; in a process group every process computes its share.

    Args:
        model: Native model or `PeftModel`, on its device, with a frozen tower.
        processor: Its processor.
        datasets: Column `image`; `width` and `height` are used if present.
        options: Where to store features.
        batch_size: Images at a time.
        context: See `compute_features`.
        progress: Show progress bars.

    Returns:
        The cache; `None`, with a warning, when there is no room for it.
    """
    # Take the model's dtype, so that nothing is rounded.
    dtype = model.dtype
    progress = progress and process_rank()[0] == 0
    inventory = _take_inventory(datasets, progress=progress)
    width = feature_width(model)
    needed = sum(feature_bytes(processor.geometry, size, width, dtype.itemsize) for size in inventory.sizes.values())
    store = open_store(options, lambda: _identity(model, processor.geometry, dtype), needed)
    problem = None if store is not None else "no room"
    if store is not None:
        try:
            share = _share_of_rank(store, inventory)
            _fill(store, share, model, processor, dtype, batch_size=batch_size, context=context, progress=progress)
        except OSError as error:
            problem = str(error)
            logger.warning(
                "no vision features are kept: %s. Every epoch runs the vision tower again; free some space, or name "
                "another folder with --vision_cache.",
                error,
            )
    if _first_problem(problem) is not None or store is None:
        return None
    store.scan()
    extend_tower(model)
    return FeatureCache(store, inventory.known)
