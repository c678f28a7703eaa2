"""Ranges of numbers on command lines, checked before anything is loaded."""

import dataclasses
from typing import Any


_ANY = (float("-inf"), float("inf"))
_COUNT = (1, float("inf"))
# Smallest and largest value of a flag in any recipe; transformers, PEFT and torch check most of these late or never.
RANGES: dict[str, tuple[float, float]] = {
    "per_device_train_batch_size": _COUNT,
    "per_device_eval_batch_size": _COUNT,
    "gradient_accumulation_steps": _COUNT,
    "max_new_tokens": _COUNT,
    "max_length": _COUNT,
    "max_train_samples": _COUNT,
    "max_eval_samples": _COUNT,
    "max_samples": _COUNT,
    "early_stopping_patience": _COUNT,
    "save_total_limit": _COUNT,
    "lora_r": _COUNT,
    "lora_alpha": _COUNT,
    "lora_dropout": (0.0, 0.99),
    "learning_rate": (0.0, float("inf")),
    "weight_decay": (0.0, float("inf")),
    "replay_fraction": (0.0001, 0.9),
    "validation_fraction": (0.0001, 0.9999),
    "dataloader_num_workers": (0, 1024),
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
    "dpi": (20, 2400),
    "max_minutes": (0.1, 1440),
}
_PATHS = ("output_dir", "output", "dataset_name", "model_name_or_path")


def check_ranges(arguments: Any) -> None:
    """Refuse numbers outside their range, and empty paths: `--output_dir=` would mean the working directory.

    Args:
        arguments: A parsed dataclass; fields without an entry in `RANGES` are not checked.

    Raises:
        ValueError: naming flag, value and range.
    """
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        if field.name in _PATHS and value == "" and field.default != "":
            raise ValueError(f"--{field.name} is empty; name a folder, or leave the flag out.")
        low, high = RANGES.get(field.name, _ANY)
        # The comparison also fails for nan.
        if field.name in RANGES and isinstance(value, int | float) and not low <= value <= high:
            wanted = f"at least {low}" if high == _ANY[1] else f"from {low} to {high}"
            raise ValueError(f"--{field.name} {value}: must be {wanted}.")
