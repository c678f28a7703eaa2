"""A vision tower that also takes what it has computed before.

The cache stands between tower and projector, so that it serves a trained projector too. The native model is not changed:
it is given features in the place of pixels, and the tower hands on what is a feature already.
"""

import hashlib
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from dsocr.models.freezing import bare_model


def _forward(compute, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    # Pixels are [views, 3, side, side], features [views, queries, width].
    if pixel_values.ndim == 3:
        return BaseModelOutput(last_hidden_state=pixel_values)
    return compute(pixel_values, *args, **kwargs)


def find_tower(model: nn.Module) -> nn.Module:
    """The vision tower of a native model, or of the one inside a `PeftModel`."""
    return bare_model(model).model.vision_tower


def accept_features(model: nn.Module) -> None:
    """Let the tower take features `[views, queries, width]` where it takes pixels; calling it twice changes nothing."""
    tower = find_tower(model)
    if not isinstance(tower.forward, partial):
        tower.forward = partial(_forward, tower.forward)


def is_frozen(model: nn.Module) -> bool:
    """Whether nothing in the tower is trained."""
    return not any(parameter.requires_grad for parameter in find_tower(model).parameters())


def feature_width(model: nn.Module) -> int:
    """Length of one feature vector, which is what the projector takes."""
    return bare_model(model).model.multi_modal_projector.in_features


def tower_fingerprint(model: nn.Module) -> str:
    """A digest of every weight and buffer of the tower: features of another model, or revision, are never taken."""
    digest = hashlib.blake2b(digest_size=16)
    tower = find_tower(model)
    for name, tensor in sorted([*tower.named_parameters(), *tower.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
