"""Routed experts with 4-bit weights: the counterpart of bitsandbytes' `Linear4bit` for a stack of experts.

bitsandbytes quantises `nn.Linear` only. DeepSeek-OCR's routed experts, 73 % of its weights, are stacked 3-D parameters,
so "4-bit" loading leaves them in bf16. This module packs them and unpacks a weight only for its product, and again in
the backward pass, without keeping it: a plain de-quantisation without activation checkpointing would keep every layer's
bf16 experts in the graph. Where one kernel multiplies all experts, all of them are unpacked for it; elsewhere one after
the other (`frozen_experts`).
"""

from collections.abc import Callable

import bitsandbytes.functional as bnb
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

# Falls back if card or dtype has no grouped matrix product; the public functions around it take no packed weights.
from transformers.integrations.moe import _grouped_mm

from dsocr.models.frozen_experts import (
    ONE_KERNEL,
    FrozenProduct,
    Groups,
    RoutedRows,
    has_grouped_kernel,
    log_path,
    multiply_groups,
    read_groups,
)


BLOCK_SIZE = 64
_NESTED_BLOCK_SIZE = 256
WEIGHTS = ("gate_up_proj", "down_proj")
# CUDA's grouped product needs rows of a multiple of 16 bytes.
_RANK_MULTIPLE = 8


class Experts4bit(nn.Module):
    """Routed experts with both stacked weights packed in blocks of 64 four-bit values.

    It replaces `UnlimitedOcrTextExperts` or `DeepseekOcr2TextExperts` and keeps their parameter names, so checkpoint
    rules and PEFT's `target_parameters` find them. Until `pack` is called for a weight, it stays a plain parameter (on
    the meta device while a checkpoint loads).

    Args:
        experts: The module to replace; its parameters are reused, not copied.
        quant_type: `"nf4"` or `"fp4"`.
        double_quant: Quantise the blocks' scales as well (8 bit, blocks of 256).

    Source: Dettmers et al., QLoRA, 2023 (NF4, double quantisation); `bitsandbytes.functional.quantize_4bit`.
    """

    def __init__(self, experts: nn.Module, *, quant_type: str = "nf4", double_quant: bool = True):
        super().__init__()
        self.num_experts, self.hidden_dim = experts.num_experts, experts.hidden_dim
        self.intermediate_dim, self.act_fn = experts.intermediate_dim, experts.act_fn
        self.quant_type, self.double_quant = quant_type, double_quant
        self.compute_dtype = experts.gate_up_proj.dtype
        for name in WEIGHTS:
            setattr(self, name, getattr(experts, name))
        # Low-rank factors by weight; an adapter's wrapper sets them only while it runs the forward (`expert_lora`).
        self.low_rank: dict[str, list] = {}

    def shape(self, name: str) -> tuple[int, int, int]:
        """`(n_experts, out_features, in_features)` of a weight, packed or not."""
        if name == "gate_up_proj":
            return self.num_experts, 2 * self.intermediate_dim, self.hidden_dim
        return self.num_experts, self.hidden_dim, self.intermediate_dim

    @torch.no_grad()
    def quantize(
        self, name: str, weight: torch.Tensor, device: torch.device | str
    ) -> tuple[nn.Parameter, dict[str, torch.Tensor]]:
        """Quantise a stacked weight expert by expert, so that the device holds only one unpacked expert at a time.

        Args:
            name: `"gate_up_proj"` or `"down_proj"`.
            weight: `[n_experts, out_features, in_features]`, on any device.
            device: Device for the packed weight.

        Returns:
            The packed weight, `[n_experts, out_features, in_features / 2]` uint8, and its scales for `set_scales`.

        Raises:
            ValueError: when an expert's size is not a multiple of the block size.
        """
        n_experts, rows, columns = self.shape(name)
        if tuple(weight.shape) != (n_experts, rows, columns):
            raise ValueError(f"{name} has shape {tuple(weight.shape)}, expected {(n_experts, rows, columns)}.")
        if rows * columns % BLOCK_SIZE:
            raise ValueError(f"{name}: {rows} x {columns} weights of an expert are no multiple of {BLOCK_SIZE}.")
        self.compute_dtype = weight.dtype
        packed = torch.empty(n_experts, rows, columns // 2, dtype=torch.uint8, device=device)
        scales = torch.empty(n_experts, rows * columns // BLOCK_SIZE, dtype=torch.float32, device=device)
        for expert in range(n_experts):
            values, state = bnb.quantize_4bit(
                weight[expert].to(device).contiguous(), blocksize=BLOCK_SIZE, quant_type=self.quant_type
            )
            packed[expert] = values.view(rows, columns // 2)
            scales[expert] = state.absmax
        found = {"absmax": scales}
        if self.double_quant:
            offset = scales.mean()
            nested, state = bnb.quantize_blockwise((scales - offset).flatten(), blocksize=_NESTED_BLOCK_SIZE)
            found = {
                "absmax": nested.view(n_experts, -1),
                "offset": offset,
                "nested_absmax": state.absmax,
                "nested_code": state.code,
            }
        return nn.Parameter(packed, requires_grad=False), found

    def set_scales(self, name: str, scales: dict[str, torch.Tensor]) -> None:
        """Store a packed weight's scales as buffers `<name>_<kind>`, which move with the module."""
        for kind, tensor in scales.items():
            self.register_buffer(f"{name}_{kind}", tensor, persistent=False)

    def pack(self, name: str) -> None:
        """Quantise a plain parameter of this module on its own device."""
        weight = getattr(self, name)
        packed, scales = self.quantize(name, weight.data, weight.device)
        setattr(self, name, packed)
        self.set_scales(name, scales)

    def dequantize(self, name: str, chosen: torch.Tensor | None = None) -> torch.Tensor:
        """Unpack a weight to the compute dtype.

        Args:
            name: `"gate_up_proj"` or `"down_proj"`.
            chosen: Indices of some experts, `[n_chosen]` in ascending order; all of them when `None`.

        Returns:
            `[n_experts or n_chosen, out_features, in_features]`.
        """
        packed, scales = getattr(self, name), self._scales(name)
        if chosen is not None:
            packed, scales = packed[chosen], scales[chosen]
        return self._unpack(name, packed, scales)

    def _scales(self, name: str) -> torch.Tensor:
        scales = getattr(self, f"{name}_absmax")
        if self.double_quant:
            state = bnb.QuantState(
                absmax=getattr(self, f"{name}_nested_absmax"),
                code=getattr(self, f"{name}_nested_code"),
                blocksize=_NESTED_BLOCK_SIZE,
                dtype=torch.float32,
            )
            scales = bnb.dequantize_blockwise(scales, state) + getattr(self, f"{name}_offset")
        return scales

    def _unpack(self, name: str, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        shape = (packed.shape[0], *self.shape(name)[1:])
        return torch.ops.bitsandbytes.dequantize_4bit.default(
            packed.reshape(-1, 1), scales.flatten(), BLOCK_SIZE, self.quant_type, shape, self.compute_dtype
        )

    def _one_by_one(self, name: str, transpose: bool) -> Callable[[int], torch.Tensor]:
        packed, scales = getattr(self, name), self._scales(name)

        def weight(expert: int) -> torch.Tensor:
            unpacked = self._unpack(name, packed[expert : expert + 1], scales[expert : expert + 1])[0]
            return unpacked.t() if transpose else unpacked

        return weight

    def _multiply(self, name, rows, offsets, chosen, groups: Groups | None):
        _, out_features, in_features = self.shape(name)

        def multiply(rows: torch.Tensor, transpose: bool) -> torch.Tensor:
            if groups is not None:
                columns = out_features if transpose else in_features
                return multiply_groups(rows, groups, self._one_by_one(name, transpose), columns)
            weight = self.dequantize(name, chosen)
            return _grouped_mm(rows, weight.transpose(-2, -1) if transpose else weight, offs=offsets)

        product = FrozenProduct.apply(rows.to(self.compute_dtype), multiply)
        for left, right, scaling in self.low_rank.get(name, ()):
            if chosen is not None:
                left, right = left[chosen], right[chosen]
            missing = -right.shape[1] % _RANK_MULTIPLE
            if missing:
                left = nn.functional.pad(left, (0, missing))
                right = nn.functional.pad(right, (0, 0, 0, missing))
            # Copy PEFT's second factor: it is strided over the experts, and CUDA's grouped product refuses that.
            inner = _grouped_mm(rows, right.contiguous().transpose(-2, -1), offs=offsets)
            product = product + scaling * _grouped_mm(inner, left.contiguous().transpose(-2, -1), offs=offsets)
        return product

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """The experts' weighted sum, as transformers' own experts compute it.

        Args:
            hidden_states: `[n_tokens, hidden]`.
            top_k_index: `[n_tokens, top_k]` expert indices.
            top_k_weights: `[n_tokens, top_k]` routing weights.

        Returns:
            `[n_tokens, hidden]`.
        """
        routed = RoutedRows(hidden_states, top_k_index)
        chosen = groups = None
        # Fake tensors (the memory plan) have no row numbers to read; their plan holds for the kernel, which needs more.
        fake = isinstance(routed.expert_ids, FakeTensor)
        in_one_kernel = fake or has_grouped_kernel(hidden_states.device, self.compute_dtype)
        # In generation a few tokens reach only a few experts: unpack only those.
        if in_one_kernel and routed.expert_ids.numel() < self.num_experts:
            chosen = torch.unique_consecutive(routed.expert_ids)
        if not fake:
            reason = ONE_KERNEL if in_one_kernel else None
            log_path(hidden_states.device.type, self.compute_dtype, reason)
        experts = torch.arange(self.num_experts, device=hidden_states.device) if chosen is None else chosen
        offsets = routed.offsets(experts)
        if not in_one_kernel:
            groups = read_groups(offsets)
        gate, up = self._multiply("gate_up_proj", routed.rows, offsets, chosen, groups).chunk(2, dim=-1)
        product = self._multiply("down_proj", self.act_fn(gate) * up, offsets, chosen, groups)
        return routed.combine(product, top_k_weights).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_experts} experts, {self.hidden_dim} -> {self.intermediate_dim}, {self.quant_type}"
