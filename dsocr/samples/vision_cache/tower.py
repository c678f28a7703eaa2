"""A vision tower that also accepts precomputed features, and pixels as they are in the image.

The cache sits between tower and projector, so it also serves a trained projector. The native model stays unchanged: it
gets features in place of pixels, and the tower passes them on. Pixels of 8 bit are normalised here, on the tower's device:
that saves the collator's time, and half of the bytes that are moved.
"""

import hashlib
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from dsocr.models.freezing import bare_model
from dsocr.samples.batch import normalize_pixels


def _forward(tower, compute, pixel_values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    # Pixels are [views, 3, side, side], or [views, side, side, 3] in 8 bit; features are [views, queries, width].
    if pixel_values.ndim == 3:
        return BaseModelOutput(last_hidden_state=pixel_values)
    if pixel_values.dtype == torch.uint8:
        dtype = next(parameter.dtype for parameter in tower.parameters() if parameter.is_floating_point())
        pixel_values = normalize_pixels(pixel_values, dtype)
    return compute(pixel_values, *args, **kwargs)


def find_tower(model: nn.Module) -> nn.Module:
    """The vision tower of a native model, also inside a `PeftModel`."""
    return bare_model(model).model.vision_tower


def extend_tower(model: nn.Module) -> None:
    """Let the tower also take features `[views, queries, width]`, and 8-bit pixels `[views, side, side, 3 or 1]` in
    0..255.

    A second call changes nothing.
    """
    tower = find_tower(model)
    if not isinstance(tower.forward, partial):
        tower.forward = partial(_forward, tower, tower.forward)


def is_frozen(model: nn.Module) -> bool:
    """Whether no part of the tower is trained."""
    return not any(parameter.requires_grad for parameter in find_tower(model).parameters())


def feature_width(model: nn.Module) -> int:
    """Length of one feature vector: the projector's input width."""
    return bare_model(model).model.multi_modal_projector.in_features


def tower_fingerprint(model: nn.Module) -> str:
    """Digest of all weights and buffers of the tower, so that features of another model or revision are never used."""
    digest = hashlib.blake2b(digest_size=16)
    tower = find_tower(model)
    for name, tensor in sorted([*tower.named_parameters(), *tower.named_buffers()]):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
