"""Merge an adapter into its 16-bit base, and check that the written checkpoint equals the merged model."""

import logging
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from dsocr.models.adapters import load_adapter
from dsocr.models.freezing import bare_model
from dsocr.models.loading import load_model


logger = logging.getLogger(__name__)

# Allowed rounding error of the sum; logits have a scale of 1 to 10.
TOLERANCE = 1e-3


class MergeError(ValueError):
    """The merged model differs from base plus adapter."""


def refuse_packed(model: nn.Module) -> None:
    """Refuse a 4-bit base.

    Raises:
        MergeError: for a 4-bit base; the message says which checkpoint to load instead.
    """
    base = bare_model(model)
    if getattr(base, "is_loaded_in_4bit", False):
        raise MergeError(
            "an adapter cannot be merged into a 4-bit base: rounding would destroy it. Merge into the 16-bit checkpoint "
            "that it was quantised from; an adapter that was trained in 4 bit fits it as it is."
        )


@torch.no_grad()
def probe_logits(model: nn.Module, inputs: dict) -> torch.Tensor:
    """Logits for one probe input, fp32 on the CPU, `[batch, length, vocabulary]`."""
    model.eval()
    return model(**inputs).logits.float().cpu()


def merge_adapter(model: PreTrainedModel, adapter: str | Path, probe: dict) -> PreTrainedModel:
    """Load a saved adapter strictly onto a base model, and merge it.

    Args:
        model: The bare base model in fp32, so that the sum is rounded only once, when it is written.
        adapter: Folder of the adapter.
        probe: Model inputs; logits before and after the merge are compared on them.

    Returns:
        The merged model.

    Raises:
        MergeError: for a 4-bit base, or when merging changes the logits by more than rounding.
        ValueError: when the adapter does not fit the base (see `load_adapter`).
    """
    refuse_packed(model)
    adapted = load_adapter(model, adapter)
    expected = probe_logits(adapted, probe)
    merged = adapted.merge_and_unload(safe_merge=True)
    difference = float((probe_logits(merged, probe) - expected).abs().max())
    if not difference <= TOLERANCE * max(1.0, float(expected.abs().max())):
        raise MergeError(f"merging {adapter} changes the logits by {difference:.2e}; nothing was written.")
    logger.info("merged %s: logits of the probe within %.1e of base and adapter", adapter, difference)
    return merged


def verify_written(folder: str | Path, merged: PreTrainedModel, probe: dict, dtype: torch.dtype) -> float:
    """Reload a written checkpoint strictly, and compare every weight and the logits with the merged model.

    Args:
        folder: The checkpoint.
        merged: The merged model, in any dtype.
        probe: Inputs of the model.
        dtype: The dtype of the written weights.

    Returns:
        The largest difference between the logits of the written and the merged model, both computed in fp32.

    Raises:
        MergeError: when a weight differs from the merged one rounded to `dtype`.
    """
    written = load_model(str(folder), dtype="float32")
    expected = dict(merged.named_parameters())
    differing = [
        name
        for name, parameter in written.named_parameters()
        if not torch.equal(parameter, expected[name].detach().to("cpu", dtype).float())
    ]
    if differing:
        raise MergeError(f"{folder}: {len(differing)} weights do not come back as merged ({', '.join(differing[:3])}).")
    return float((probe_logits(written, probe) - probe_logits(merged.float(), probe)).abs().max())
