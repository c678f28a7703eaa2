"""Routed experts with frozen weights, where no kernel multiplies all experts at once.

transformers' `grouped_mm` has such a kernel for bfloat16 on Hopper and data-centre Blackwell cards under Linux. On other
cards, in float16 and on a CPU it runs one product per expert, and each of a layer's two products first waits for the
device to read where an expert's rows begin. Below compute capability 8.0 its backward pass also multiplies out a
gradient for every expert's weight, frozen or not.

Here the rows are sorted once, the numbers of rows are read once per layer for all four products of a step, and only the
rows get a gradient. Experts in 16 or 32 bit and packed ones (`quantized_experts`) share this code.
"""

import functools
import logging
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrize


logger = logging.getLogger(__name__)

EXPERTS_CLASSES = ("UnlimitedOcrTextExperts", "DeepseekOcr2TextExperts")
# Compute capabilities, by their first number, for which torch builds its grouped kernel (`_grouped_mm_cuda` in
# aten/src/ATen/native/cuda/GroupedBlas.cpp): Hopper, Blackwell of data centres. Consumers' Blackwell (12.0) has none.
_KERNEL_CAPABILITIES = (9, 10)
ONE_KERNEL = "one kernel multiplies all experts"


class Groups(NamedTuple):
    """Which experts have rows, and how many.

    Attributes:
        experts: Their indices, ascending.
        sizes: Their numbers of rows; together they are all rows.
    """

    experts: list[int]
    sizes: list[int]


def has_grouped_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch multiplies all experts in one kernel on this device, without reading anything back."""
    if device.type != "cuda" or dtype != torch.bfloat16 or sys.platform != "linux":
        return False
    return torch.cuda.get_device_capability(device)[0] in _KERNEL_CAPABILITIES


class RoutedRows:
    """The rows of a batch, sorted by the expert that they go to.

    Args:
        hidden_states: `[n_tokens, hidden]`.
        top_k_index: Expert indices, `[n_tokens, top_k]`.

    Attributes:
        rows: `[n_tokens * top_k, hidden]`, sorted by expert.
        expert_ids: Expert of every row, `[n_tokens * top_k]`.
    """

    def __init__(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor):
        self.shape = top_k_index.shape
        self.expert_ids, self._order = top_k_index.reshape(-1).sort(stable=True)
        self.rows = hidden_states[self._order // self.shape[1]]

    def offsets(self, experts: torch.Tensor) -> torch.Tensor:
        """The end of every expert's rows, int32 `[n_experts]`, for ascending indices `[n_experts]`."""
        return torch.searchsorted(self.expert_ids, experts, right=True).int()

    def combine(self, product: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """Weigh the experts' outputs and add up those of a token.

        Args:
            product: `[n_tokens * top_k, hidden]`, sorted by expert.
            top_k_weights: `[n_tokens, top_k]`.

        Returns:
            `[n_tokens, hidden]`.
        """
        product = product * top_k_weights.reshape(-1)[self._order].unsqueeze(-1)
        # Sum a token's choices in a fixed order; index_add_ would add in any order on a GPU.
        place = torch.empty_like(self._order)
        place[self._order] = torch.arange(self._order.numel(), device=self._order.device)
        return product[place].view(*self.shape, -1).sum(dim=1)


def read_groups(offsets: torch.Tensor) -> Groups:
    """The experts that have rows, by the ends of all experts' rows `[n_experts]`.

    On a GPU this waits for the device: call it once per layer.
    """
    ends = offsets.tolist()
    sizes = [stop - start for start, stop in zip([0, *ends], ends, strict=False)]
    experts = [expert for expert, size in enumerate(sizes) if size]
    return Groups(experts, [sizes[expert] for expert in experts])


def multiply_groups(
    rows: torch.Tensor, groups: Groups, weights: Callable[[int], torch.Tensor], out_features: int
) -> torch.Tensor:
    """Multiply every expert's rows by its weight, one product per expert.

    Args:
        rows: `[n_rows, in_features]`, sorted by expert, in the weights' dtype.
        groups: The experts that have rows.
        weights: Gives the weight of an expert, `[in_features, out_features]`.
        out_features: Columns of the result.

    Returns:
        `[n_rows, out_features]`.
    """
    output = rows.new_empty(rows.shape[0], out_features)
    # Split at once: slices made one by one take the launching thread longer than the products.
    pieces = zip(groups.experts, rows.split(groups.sizes), output.split(groups.sizes), strict=True)
    for expert, some, place in pieces:
        # Autocast leaves products with `out=` alone, as it does transformers' grouped product.
        torch.mm(some, weights(expert), out=place)
    return output


class FrozenProduct(torch.autograd.Function):
    """Rows times frozen weights: only the rows get a gradient, and neither rows nor weights are kept for it.

    `apply(rows, multiply)`: `multiply(rows, True)` is the product with the transposed weights, and
    `multiply(gradient, False)` the one without transposing, which is the rows' gradient.
    """

    @staticmethod
    def forward(ctx, rows, multiply):
        ctx.multiply = multiply
        return multiply(rows, True)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return ctx.multiply(gradient, False), None


def _multiply_stacked(rows: torch.Tensor, groups: Groups, weight: torch.Tensor) -> torch.Tensor:
    def multiply(rows: torch.Tensor, transpose: bool) -> torch.Tensor:
        weights = weight.transpose(1, 2) if transpose else weight
        return multiply_groups(rows, groups, weights.unbind().__getitem__, weights.shape[2])

    return FrozenProduct.apply(rows.to(weight.dtype), multiply)


def run_frozen_experts(
    experts: nn.Module, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """The weighted sum of a native model's experts, bit for bit that of transformers' `grouped_mm` on a CPU.

    Args:
        experts: `UnlimitedOcrTextExperts` or `DeepseekOcr2TextExperts`; its weights get no gradient.
        hidden_states: `[n_tokens, hidden]`.
        top_k_index: `[n_tokens, top_k]` expert indices.
        top_k_weights: `[n_tokens, top_k]` routing weights.

    Returns:
        `[n_tokens, hidden]`.
    """
    routed = RoutedRows(hidden_states, top_k_index)
    groups = read_groups(routed.offsets(torch.arange(experts.num_experts, device=hidden_states.device)))
    product = _multiply_stacked(routed.rows, groups, experts.gate_up_proj)
    product = _multiply_stacked(experts._apply_gate(product), groups, experts.down_proj)
    return routed.combine(product, top_k_weights).to(hidden_states.dtype)


def _reason_for_transformers(experts: nn.Module) -> str | None:
    """Why a layer is left to transformers' own code; `None` when it is not."""
    # PEFT's LoRA on a parameter is a parametrisation: reading the weight would add the low-rank product to all of it.
    trained = torch.is_grad_enabled() and any(weight.requires_grad for weight in experts.parameters())
    if trained or parametrize.is_parametrized(experts):
        return "the experts are trained"
    weight = experts.gate_up_proj
    if has_grouped_kernel(weight.device, weight.dtype):
        return ONE_KERNEL
    if weight.device.type not in ("cpu", "cuda") or experts._is_expert_parallel or torch.compiler.is_compiling():
        return "the products here were never tried on this device or in this mode"
    return None


@functools.cache
def log_path(device_type: str, dtype: torch.dtype, reason: str | None) -> None:
    """Say once which way the routed experts take."""
    where = f"routed experts ({str(dtype).removeprefix('torch.')}, {device_type})"
    if reason is None:
        logger.info("%s: one product per expert, rows read once per layer, no gradient for frozen weights", where)
    else:
        logger.info("%s: transformers' way, because %s", where, reason)


def _forward(experts: nn.Module, hidden_states: torch.Tensor, *routing: torch.Tensor) -> torch.Tensor:
    """The forward pass of native experts, by this module's products where they are the better ones."""
    # Generation chooses `batched_mm` while it decodes on a GPU, and a person may choose `eager`. Fake tensors (the memory
    # plan) have no row numbers to read.
    if experts.config._experts_implementation != "grouped_mm" or isinstance(hidden_states, FakeTensor):
        return type(experts).forward(experts, hidden_states, *routing)
    reason = _reason_for_transformers(experts)
    log_path(hidden_states.device.type, hidden_states.dtype, reason)
    if reason is not None:
        return type(experts).forward(experts, hidden_states, *routing)
    return run_frozen_experts(experts, hidden_states, *routing)


def use_frozen_experts(model: nn.Module) -> int:
    """Let a native model's routed experts run by this module while they are frozen and no grouped kernel exists.

    The choice is made in every forward pass, so a model may move to another device and its experts may be trained. With
    `set_experts_implementation("eager")`, or any name but `"grouped_mm"`, transformers' own code runs. A second call
    changes nothing.

    Returns:
        The number of layers with routed experts in 16 or 32 bit.
    """
    layers = [module for module in model.modules() if type(module).__name__ in EXPERTS_CLASSES]
    for experts in layers:
        experts.forward = functools.partial(_forward, experts)
    return len(layers)
