"""A prepared sample, and padding samples into the inputs of the native models."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from dsocr.samples.geometry import ImageFeatures, ImageViews


@dataclass
class OcrSample:
    """One sample ready for batching.

    Attributes:
        input_ids: bos, prompt, image tokens, prompt, and in training the answer and one eos.
        prompt_length: Number of ids before the answer.
        views: The image's views, or their features.
        name: File name, for messages.
    """

    input_ids: list[int]
    prompt_length: int
    views: ImageViews | ImageFeatures
    name: str


def normalize_pixels(views: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Convert uint8 views `[views, side, side, 3]` in 0..255 to `[views, 3, side, side]` in -1..1 (mean = std = 0.5).

    Views of one band, `[views, side, side, 1]`, are grey: all three planes are alike.
    """
    pixels = torch.empty(views.shape[0], 3, *views.shape[1:3], dtype=dtype, device=views.device)
    for target, view in zip(pixels, views, strict=True):
        # View by view, planes first: only one fp32 copy at a time, and half the time of converting all at once.
        target.copy_(view.permute(2, 0, 1).contiguous().to(torch.float32).div_(255).sub_(0.5).div_(0.5))
    return pixels


def stack_views(views: list[np.ndarray]) -> torch.Tensor:
    """Views `[side, side, 3]` as one tensor `[views, side, side, 3]`, uint8 in 0..255; `[views, side, side, 1]` when the
    geometry cut all of them from one band."""
    if all(view.strides[-1] == 0 for view in views):
        views = [view[..., :1] for view in views]
    return torch.from_numpy(np.stack(views))


def _stack(views: list[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
    return stack_views(views) if dtype == torch.uint8 else normalize_pixels(stack_views(views), dtype)


def _join(features: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Features `[views, queries, width]` of several images as one tensor; those of a single image without a copy."""
    joined = features[0] if len(features) == 1 else torch.cat(features)
    return joined if dtype == torch.uint8 else joined.to(dtype)


def collate_samples(
    samples: list[OcrSample],
    *,
    pad_token_id: int,
    padding_side: Literal["left", "right"],
    dtype: torch.dtype,
    with_grid: bool,
) -> dict[str, Any]:
    """Pad samples into the native model's inputs.

    Args:
        samples: The samples of the batch, all with views or all with features.
        pad_token_id: Token that fills up shorter samples.
        padding_side: `"right"` for training, `"left"` for generation.
        dtype: Dtype of the pixels; `torch.uint8` leaves them as they are, for a tower that normalises them itself
            (`dsocr.samples.vision_cache.tower.extend_tower`).
        with_grid: Whether the model takes `patches_grid` (v1 and Unlimited-OCR do).

    Returns:
        `input_ids`, `attention_mask` `[batch, length]`; `pixel_values` `[batch, 3, base, base]`; if any image has
        tiles, also `pixel_values_local` `[sum of tiles, 3, tile, tile]`, `num_local_patches` (a list, tiles per image)
        and `patches_grid` (a list of `[columns, rows]`). In 8 bit, the pixels are `[views, side, side, 3]`, or of one band. Samples with
        features have features instead of pixels: `[batch, queries, width]` and `[sum of tiles, queries, width]`.
    """
    length = max(len(sample.input_ids) for sample in samples)
    input_ids = torch.full((len(samples), length), pad_token_id)
    attention_mask = torch.zeros((len(samples), length), dtype=torch.long)
    for row, sample in enumerate(samples):
        start = length - len(sample.input_ids) if padding_side == "left" else 0
        stop = start + len(sample.input_ids)
        input_ids[row, start:stop] = torch.tensor(sample.input_ids)
        attention_mask[row, start:stop] = 1
    batch: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    tiled = [sample.views for sample in samples if len(sample.views.tiles)]
    if isinstance(samples[0].views, ImageFeatures):
        batch["pixel_values"] = _join([sample.views.global_view[None] for sample in samples], dtype)
    else:
        batch["pixel_values"] = _stack([sample.views.global_view for sample in samples], dtype)
    if tiled:
        if isinstance(tiled[0], ImageFeatures):
            batch["pixel_values_local"] = _join([views.tiles for views in tiled], dtype)
        else:
            batch["pixel_values_local"] = _stack([tile for views in tiled for tile in views.tiles], dtype)
        batch["num_local_patches"] = [len(sample.views.tiles) for sample in samples]
        if with_grid:
            batch["patches_grid"] = [list(sample.views.grid) for sample in samples]
    return batch
