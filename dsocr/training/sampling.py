"""The order of the training rows: batches of like length, the same on every process and after a resume."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


class LengthSampler(Sampler[int]):
    """Shuffle rows so that those of a step have about the same length; each epoch has an order of its own.

    transformers' `LengthGroupedSampler` draws from the process's random state. Dropout moves that state differently on each
    process, so from the second epoch on two processes shuffled differently: some rows were shown twice, others never.

    Args:
        lengths: Length of every row, tokens.
        step_rows: Rows of an optimizer step, over all processes and micro-batches: the order does not depend on how many
            processes share them.
        seed: Seed of the order, together with the epoch.
    """

    def __init__(self, lengths: list[int], step_rows: int, seed: int):
        self._lengths = lengths
        self._step_rows = step_rows
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch's order; accelerate calls this when an epoch begins, also after a resume."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(1_000_003 * self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._step_rows, generator=generator))
