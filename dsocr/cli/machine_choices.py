"""Numbers that the machine decides when the user names none: batch size, checkpointing, DataLoader workers."""

import logging
import os
from dataclasses import replace

import torch

from dsocr.cli.options import memory_settings
from dsocr.cli.training import ParsedArguments, Undecided
from dsocr.training.memory_plan.plan import RESERVED_BYTES
from dsocr.training.memory_plan.plan_report import plan_run


logger = logging.getLogger(__name__)

# Share of a card's memory that a chosen batch may fill: the plan's images are the largest there are, its figures exact to
# the allocator's rounding, and another program may hold a little.
FILLED = 0.9
MOST_WORKERS = 8


def _sizes(effective: int) -> list[int]:
    """Batch sizes that divide the effective batch, the largest first."""
    return [size for size in range(effective, 0, -1) if effective % size == 0]


def choose_batch(args: ParsedArguments, name: str, card_bytes: int | None) -> None:
    """Decide `--per_device_train_batch_size auto` in place: the largest batch that fits the card with a margin.

    Gradient accumulation keeps the effective batch. Of one size, the run without activation checkpointing is taken if it
    fits: it computes a third less.

    Args:
        args: The parsed command line; its training arguments change.
        name: Hub id or folder of the base model.
        card_bytes: Memory of the GPU; `None` without a GPU keeps the default size.
    """
    training = args.training
    if not isinstance(training.per_device_train_batch_size, Undecided):
        return
    size = int(training.per_device_train_batch_size)
    effective = size * training.gradient_accumulation_steps
    checkpointing = bool(training.activation_checkpointing)
    if card_bytes is None:
        logger.info("batch size auto: no GPU to measure, so %d, accumulated to %d", size, effective)
    else:
        settings = memory_settings(args)
        room = FILLED * card_bytes - RESERVED_BYTES
        tried = [
            replace(settings, batch_size=batch, checkpointing=kept)
            for batch in _sizes(effective)
            for kept in ((False, True) if checkpointing else (False,))
        ]
        revision, image_mode = args.model.model_revision, args.script.image_mode
        for chosen in tried:
            plan = plan_run(name, chosen, revision=revision, image_mode=image_mode, with_savings=False).plan
            if plan.training_peak_bytes <= room:
                break
        size, checkpointing = chosen.batch_size, chosen.checkpointing
        logger.info(
            "batch size auto: %d, accumulated to %d, activation checkpointing %s; planned peak of training %.2f GB of "
            "%.2f GB",
            size,
            effective,
            "on" if checkpointing else "off",
            plan.training_peak_bytes / 1e9,
            card_bytes / 1e9,
        )
    training.per_device_train_batch_size = size
    training.gradient_accumulation_steps = effective // size
    training.activation_checkpointing = checkpointing


def count_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_workers(args: ParsedArguments, *, images_are_cut: bool) -> None:
    """Decide the number of DataLoader workers in place, unless the user named one.

    Args:
        args: The parsed command line; its training arguments change.
        images_are_cut: Whether training opens and cuts images in every step. Kept vision features need no workers: each
            would map them anew, and stacking them takes milliseconds.
    """
    if not isinstance(args.training.dataloader_num_workers, Undecided):
        return
    workers = 0
    if images_are_cut and torch.cuda.is_available():
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = min(MOST_WORKERS, max(0, count_cores() // processes - 1))
        logger.info("%d DataLoader workers cut the images (--dataloader_num_workers)", workers)
    args.training.dataloader_num_workers = workers
