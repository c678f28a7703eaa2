"""The changes that make a step faster. Each can be taken away and put back on the same model."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import nn

from dsocr.models.frozen_experts import EXPERTS_CLASSES, use_frozen_experts
from dsocr.models.sam_attention import split_global_attention


# In the order in which they come together.
LEVERS = {
    "no_grad": "vision without gradient",
    "split_attention": "SAM's bias in pieces",
    "frozen_experts": "experts read once",
    "compact_head": "vocabulary for answers alone",
    "features": "vision features kept",
}
PLAIN = "plain"
ALL = "all"
# The measured paths: no lever, each lever alone, all together.
PATHS: dict[str, tuple[str, ...]] = {PLAIN: (), **{lever: (lever,) for lever in LEVERS}, ALL: tuple(LEVERS)}


@contextmanager
def _with_gradient(tower: nn.Module) -> Iterator[None]:
    """Take the hooks of `freeze_vision` off: the tower is merely frozen then, as other trainers leave it."""
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
def _frozen_experts(model: nn.Module) -> Iterator[None]:
    use_frozen_experts(model)
    try:
        yield
    finally:
        for module in model.modules():
            if type(module).__name__ in EXPERTS_CLASSES:
                del module.forward


@contextmanager
def levers_on(model: nn.Module, chosen: tuple[str, ...]) -> Iterator[None]:
    """Pull the levers that change the model; `compact_head` and `features` change its inputs instead.

    Args:
        model: A bare native model whose tower `freeze_vision` has frozen.
        chosen: Names of `LEVERS`.
    """
    with ExitStack() as stack:
        if "no_grad" not in chosen:
            stack.enter_context(_with_gradient(model.model.vision_tower))
        if "split_attention" in chosen:
            stack.enter_context(_split(model))
        if "frozen_experts" in chosen:
            stack.enter_context(_frozen_experts(model))
        yield
