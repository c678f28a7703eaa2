"""What makes a step faster, each of which can be taken away and put back on the same model."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import nn

from dsocr.models.sam_attention import split_global_attention


# In the order in which they come together.
LEVERS = {
    "no_grad": "vision without gradient",
    "split_attention": "SAM's bias in pieces",
    "compact_head": "vocabulary for answers alone",
    "features": "vision features kept",
}
PLAIN = "plain"
ALL = "all"


def variants(levers: list[str]) -> dict[str, tuple[str, ...]]:
    """What is measured: nothing, each lever alone, all together."""
    return {PLAIN: (), **{lever: (lever,) for lever in levers}, **({ALL: tuple(levers)} if len(levers) > 1 else {})}


@contextmanager
def _with_gradient(tower: nn.Module) -> Iterator[None]:
    """Without the hooks of `freeze_vision`: a tower that is merely frozen, as others train it."""
    before, after = dict(tower._forward_pre_hooks), dict(tower._forward_hooks)
    tower._forward_pre_hooks.clear()
    tower._forward_hooks.clear()
    try:
        yield
    finally:
        tower._forward_pre_hooks.update(before)
        tower._forward_hooks.update(after)


@contextmanager
def _split(model: nn.Module) -> Iterator[None]:
    split_global_attention(model)
    try:
        yield
    finally:
        for layer in model.model.vision_tower.sam_encoder.layers:
            if isinstance(layer.attn.__dict__.get("forward"), partial):
                del layer.attn.forward


@contextmanager
def levers_on(model: nn.Module, chosen: tuple[str, ...]) -> Iterator[None]:
    """A bare native model, whose tower is frozen by `freeze_vision`, with those levers of `LEVERS` that change it."""
    with ExitStack() as stack:
        if "no_grad" not in chosen:
            stack.enter_context(_with_gradient(model.model.vision_tower))
        if "split_attention" in chosen:
            stack.enter_context(_split(model))
        yield


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class TowerClock:
    """Adds up the time that a model's vision tower takes.

    Args:
        model: A bare native model.
        device: Where it is.

    Attributes:
        seconds: Since it was last set to zero.
    """

    def __init__(self, model: nn.Module, device: torch.device):
        self.seconds = 0.0
        self._device = device
        tower = model.model.vision_tower
        self._inner = tower.forward
        tower.forward = self._timed

    def _timed(self, *args, **kwargs):
        synchronize(self._device)
        start = time.perf_counter()
        output = self._inner(*args, **kwargs)
        synchronize(self._device)
        self.seconds += time.perf_counter() - start
        return output
