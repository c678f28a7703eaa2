"""Choose the datasets of a run to cache, and where to store their features."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel

from dsocr.data.training_sets import TrainingSets
from dsocr.samples.vision_cache.store import DiskStore, MemoryStore
from dsocr.samples.vision_cache.tower import is_frozen


logger = logging.getLogger(__name__)

AUTO, OFF = "auto", "off"
# Largest size of features in memory under --vision_cache auto; more goes to the run folder.
MEMORY_BYTES = 8 * 2**30
# Largest share of the free disk for a cache.
_DISK_SHARE = 0.9


@dataclass(frozen=True)
class CacheOptions:
    """Settings of the cache, from `--vision_cache` and the run.

    Attributes:
        place: `"auto"` (memory up to `MEMORY_BYTES`, else `run_folder`), `"off"`, or a folder that outlives the run.
        run_folder: Folder for features too large for memory.
        in_memory: Allow memory; set False with DataLoader workers or several processes, which would each need a copy.
        augment: Whether training images vary in every epoch, and their features with them.
        train_again: Whether training sees its samples more than once.
    """

    place: str = AUTO
    run_folder: str | Path = "vision_features"
    in_memory: bool = True
    augment: bool = False
    train_again: bool = True

    @property
    def folder(self) -> Path | None:
        """The folder named by the user; `None` without one."""
        return None if self.place in (AUTO, OFF) else Path(self.place)


def choose_cached(sets: TrainingSets, model: PreTrainedModel, options: CacheOptions) -> list[Dataset]:
    """Choose the sets to read more than once with the same features; empty when caching gains nothing.

    Args:
        sets: Sets of the run.
        model: Native model or `PeftModel`, set up for training.
        options: Settings of the cache.
    """
    if options.place == OFF:
        return []
    if not is_frozen(model):
        logger.info("vision features are not kept: the vision tower is trained")
        return []
    chosen = list(sets.evaluated.values())
    if options.augment:
        logger.info("vision features of the training images are not kept: they are varied in every epoch")
    elif not options.train_again:
        logger.info("vision features of the training images are not kept: they are seen only once")
    else:
        chosen.append(sets.train)
    return chosen


def open_store(options: CacheOptions, find_identity: Callable[[], str], needed: int) -> MemoryStore | DiskStore | None:
    """Open a store with room for `needed` bytes of features; `None`, with a warning, when there is no room.

    Args:
        options: Where features may be stored.
        find_identity: Names tower, geometry and dtype of the features; called only for a store on disk, because it
            digests the whole tower.
        needed: Bytes.
    """
    gib = needed / 2**30
    if options.folder is None and options.in_memory:
        if needed <= MEMORY_BYTES:
            logger.info("vision features: %.3f GiB in memory", gib)
            return MemoryStore()
        limit = MEMORY_BYTES / 2**30
        logger.info("vision features need %.3f GiB, more than the %g GiB that may stay in memory: on disk", gib, limit)
    folder, identity = options.folder or Path(options.run_folder), find_identity()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [path.name for path in folder.iterdir() if path.is_dir() and path.name != identity]
        if others and not (folder / identity).exists():
            logger.info("%s holds features of another model or image mode (%s); computing anew", folder, others[0])
        store = DiskStore(folder / identity)
    except OSError as error:
        logger.warning("no vision features are kept: %s; every epoch runs the vision tower again", error)
        return None
    free = shutil.disk_usage(folder).free
    held = sum(path.stat().st_size for path in store.folder.iterdir())
    if needed - held > _DISK_SHARE * free:
        logger.warning(
            "no vision features are kept: they need %.3f GiB and %s has %.3f GiB free; every epoch runs the vision tower "
            "again. Name a roomier folder with --vision_cache, or choose a smaller --image_mode.",
            gib,
            folder,
            free / 2**30,
        )
        return None
    logger.info("vision features: %.3f GiB in %s", gib, store.folder)
    return store
