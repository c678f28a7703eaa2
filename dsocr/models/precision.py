"""The number types of a forward pass, the same in training and in reading."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn


def _forward_without_autocast(compute, hidden_states: torch.Tensor) -> Any:
    with torch.autocast(hidden_states.device.type, enabled=False):
        return compute(hidden_states)


def keep_routers_in_fp32(model: nn.Module) -> int:
    """Let the routers of the experts compute in float32 under autocast too; a second call changes nothing.

    The native router casts its inputs to float32, and autocast casts them back: in 16 bit, near ties between experts fall
    differently, and one to two tokens in a hundred go to another set of experts than in reading.

    Args:
        model: A bare native model.

    Returns:
        The number of routers.
    """
    routers = [module for name, module in model.named_modules() if name.endswith("mlp.gate")]
    for router in routers:
        if not isinstance(router.forward, partial):
            router.forward = partial(_forward_without_autocast, router.forward)
    return len(routers)


def training_precision(model: nn.Module) -> AbstractContextManager:
    """The context that training runs its forward pass in: autocast to the weights' type on a GPU in 16 bit.

    Without it, a trained adapter (float32) would be read in another type than it was trained in.
    """
    weight = model.get_input_embeddings().weight
    if weight.device.type == "cuda" and weight.dtype in (torch.bfloat16, torch.float16):
        return torch.autocast("cuda", dtype=weight.dtype)
    return nullcontext()
