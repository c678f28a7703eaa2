"""LoRA on 4-bit experts.

PEFT 0.21.2 adapts a stacked parameter by a parametrisation that adds the low-rank product to the whole weight. On
quantised experts that fails silently: no parameters are created, or they get no gradient. Here the product
with the packed weight and the product with the two factors are added instead, which is the same sum. Names and shapes of
the saved tensors are PEFT's own, so the adapter loads on a bf16 base, by PEFT alone.
"""

import contextlib
from collections.abc import Iterator

import torch
from peft import LoraConfig
from peft.tuners.lora import layer as peft_lora

from dsocr.models.quantized_experts import Experts4bit


class ParamWrapper(peft_lora.ParamWrapper):
    """PEFT's wrapper of a stacked parameter, for a packed one. The name is PEFT's: it looks for it when it nests two."""

    def get_param(self) -> torch.Tensor:
        """A stand-in with the shape `[n_experts, out_features, in_features]`, type and device of the unpacked weight,
        without its memory; PEFT reads nothing else of it."""
        experts = self.get_base_layer()
        device = getattr(experts, self.parameter_name).device
        return torch.empty(1, dtype=experts.compute_dtype, device=device).expand(experts.shape(self.parameter_name))

    @contextlib.contextmanager
    def _activate_lora(self, active_adapters: list[str]) -> Iterator[None]:
        experts = self.get_base_layer()
        factors = [self.get_delta_factors(adapter) for adapter in active_adapters if adapter in self.lora_A]
        experts.low_rank[self.parameter_name] = factors
        try:
            yield
        finally:
            del experts.low_rank[self.parameter_name]

    def merge(self, *args, **kwargs) -> None:
        raise ValueError(
            "an adapter cannot be merged into 4-bit experts: rounding would destroy it. Load the base model without "
            "load_in_4bit, put the adapter on it with dsocr.load_adapter(), and merge there."
        )


def adapt_experts(config: LoraConfig) -> LoraConfig:
    """Make a LoRA configuration put its `target_parameters` on 4-bit experts; returns the same configuration."""
    config._register_custom_module({Experts4bit: ParamWrapper})
    return config
