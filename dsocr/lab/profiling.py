"""What runs inside a piece of code: operators by name, launches and waits of a GPU, the way the routed experts take."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


# Calls of CUDA's runtime and driver that start a kernel, and those in which the program waits for the GPU. The clocks of
# the lab wait with cudaDeviceSynchronize, which therefore does not count.
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx")
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize")
_GROUPED, _FALLBACK, _BATCHED = "aten::_grouped_mm", "transformers::grouped_mm_fallback", "aten::bmm"
_SINGLE_PRODUCTS = ("aten::mm", "aten::mm_out")
_HERE = "frozen experts of dsocr"
# Rows that go through the experts while they are observed; enough for every expert to get some.
_ROWS_PER_EXPERT = 16


def count_calls(run: Callable[[], Any], device: torch.device) -> dict[str, int]:
    """Run a function under torch's profiler; the number of calls by name, CUDA's own among them on a GPU."""
    # Kineto reads the variable at its first use; without it every profile prints six lines of its own.
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiler:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return {event.key: event.count for event in profiler.key_averages()}


@dataclass(frozen=True)
class ExpertPath:
    """How the routed experts are computed on this machine.

    Attributes:
        implementation: Name of transformers' implementation, or this project's own (`dsocr.models.frozen_experts`).
        operator: The operator that multiplies the rows.
        products: Products of single experts inside it; 0 when one kernel computes all of them.
        n_experts: Number of experts.
    """

    implementation: str
    operator: str
    products: int
    n_experts: int

    def describe(self) -> str:
        """The path in one line."""
        how = f"{self.products} products of single experts a layer" if self.products else "one kernel for all experts"
        return f"{self.implementation} through {self.operator}: {how}"


def routed_experts(model: nn.Module) -> nn.Module:
    """The first layer of routed experts of a native model, packed or not.

    Raises:
        ValueError: the model has none.
    """
    for layer in model.model.language_model.layers:
        if hasattr(layer.mlp, "experts"):
            return layer.mlp.experts
    raise ValueError("the model has no layer of routed experts.")


def random_routing(experts: nn.Module, rows: int, top_k: int, dtype: torch.dtype, device: torch.device) -> tuple:
    """Random rows with their experts and weights: `[rows, hidden]`, `[rows, top_k]` indices, `[rows, top_k]` weights."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, experts.hidden_dim, generator=generator)
    chosen = torch.rand(rows, experts.num_experts, generator=generator).topk(top_k).indices
    weights = torch.rand(rows, top_k, generator=generator)
    return hidden.to(device, dtype), chosen.to(device), weights.to(device, dtype)


def observe_experts(model: nn.Module) -> ExpertPath:
    """Run one layer's routed experts under the profiler and say which way they took.

    Args:
        model: A bare native model, on its device and in its type.
    """
    experts, text = routed_experts(model), model.config.get_text_config()
    device = model.get_input_embeddings().weight.device
    rows = _ROWS_PER_EXPERT * experts.num_experts // text.num_experts_per_tok
    routed = random_routing(experts, rows, text.num_experts_per_tok, model.dtype, device)
    with torch.no_grad():
        experts(*routed)
        calls = count_calls(lambda: experts(*routed), device)
    implementation = text._experts_implementation
    found = next((name for name in (_GROUPED, _FALLBACK, _BATCHED, "aten::linear") if name in calls), "aten::mm")
    if found == "aten::mm":
        implementation = _HERE
    products = sum(calls.get(name, 0) for name in _SINGLE_PRODUCTS)
    return ExpertPath(implementation, found, products, experts.num_experts)


class RoutingRecorder:
    """Record which experts every token goes to, while it is active.

    Args:
        model: A bare native model.

    Attributes:
        chosen: By layer, the sorted expert indices `[n_tokens, top_k]`.
    """

    def __init__(self, model: nn.Module):
        self._gates = [layer.mlp.gate for layer in model.model.language_model.layers if hasattr(layer.mlp, "gate")]
        self.chosen: list[torch.Tensor] = []

    def __enter__(self):
        self._hooks = [
            gate.register_forward_hook(lambda module, args, output: self.chosen.append(output[2].sort(dim=-1).values))
            for gate in self._gates
        ]
        return self

    def __exit__(self, *exception):
        for hook in self._hooks:
            hook.remove()

    def share_changed(self, other: "RoutingRecorder") -> float:
        """Share of tokens, over all layers, that go to another set of experts than in `other`; in 0..1."""
        differs = [(one != two).any(dim=-1) for one, two in zip(self.chosen, other.chosen, strict=True)]
        return float(torch.cat(differs).float().mean())
