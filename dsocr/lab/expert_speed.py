"""The time of one layer of routed experts with frozen weights, on every path there is."""

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.integrations import moe

from dsocr.lab.random_models import sized_config
from dsocr.models import quantized_experts
from dsocr.models.frozen_experts import use_frozen_experts
from dsocr.models.quantized_experts import WEIGHTS, Experts4bit


REFERENCE = "transformers, `grouped_mm`"
HERE = "here"
# What is measured: rows of a micro-batch, and their type.
EXPERT_ROWS = (512, 2048)
EXPERT_TYPES = ("bfloat16", "float32")


def _build_layer(dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrTextMoe

    config = sized_config("full", "v1").get_text_config()
    layer = UnlimitedOcrTextMoe(config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_(std=0.02, generator=generator)
        parameter.requires_grad_(False)
    return layer, config


def _paths(dtype: torch.dtype) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """Forward passes of one layer, by path: `[1, rows, hidden]` -> the same shape."""
    layer, config = _build_layer(dtype)
    packed = copy.deepcopy(layer)
    packed.experts = Experts4bit(packed.experts)
    for name in WEIGHTS:
        packed.experts.pack(name)

    def native(implementation: str, rows: torch.Tensor) -> torch.Tensor:
        config._experts_implementation_internal = implementation
        return layer(rows)

    def fallback(rows: torch.Tensor) -> torch.Tensor:
        with patch.object(moe, "_can_use_grouped_mm", lambda *given: False):
            output = native("grouped_mm", rows)
            output.backward(torch.ones_like(output))
        return output.detach()

    def here(rows: torch.Tensor) -> torch.Tensor:
        use_frozen_experts(layer)
        try:
            return native("grouped_mm", rows)
        finally:
            del layer.experts.forward

    def unpacked(rows: torch.Tensor) -> torch.Tensor:
        with patch.object(quantized_experts, "has_grouped_kernel", lambda *given: True):
            output = packed(rows)
            output.backward(torch.ones_like(output))
        return output.detach()

    return {
        "transformers, `eager`": lambda rows: native("eager", rows),
        REFERENCE: lambda rows: native("grouped_mm", rows),
        "transformers, its fallback below 8.0": fallback,
        HERE: here,
        "4 bit, all experts unpacked at once": unpacked,
        "4 bit here, one by one": packed,
    }


def measure_experts(repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Time forward and backward of one mixture-of-experts layer of the released v1 shape, on one thread.

    Args:
        repeats: Interleaved rounds, after one that is not timed.

    Returns:
        By type and rows (`bfloat16, 512 rows`), then by path: `seconds` (median) and `ratio` (median over the rounds of the
        rate as a multiple of that of `grouped_mm`).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results = {}
    try:
        for name in EXPERT_TYPES:
            dtype = getattr(torch, name)
            paths = _paths(dtype)
            for count in EXPERT_ROWS:
                generator = torch.Generator().manual_seed(1)
                rows = torch.randn(1, count, 1280, generator=generator).to(dtype).requires_grad_()
                seconds: dict[str, list[float]] = {path: [] for path in paths}
                for turn in tqdm(range(repeats + 1), desc=f"Experts, {name}, {count} rows", leave=False):
                    for path, forward in paths.items():
                        rows.grad = None
                        start = time.perf_counter()
                        output = forward(rows)
                        if output.requires_grad:
                            output.backward(torch.ones_like(output))
                        if turn:
                            seconds[path].append(time.perf_counter() - start)
                results[f"{name}, {count} rows"] = {
                    path: {
                        "seconds": statistics.median(times),
                        "ratio": statistics.median(
                            one / other for one, other in zip(seconds[REFERENCE], times, strict=True)
                        ),
                    }
                    for path, times in seconds.items()
                }
    finally:
        torch.set_num_threads(threads)
    return results
