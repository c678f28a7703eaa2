"""LoRA on 4-bit experts.

PEFT 0.21.2 adapts a stacked parameter by a parametrisation: it adds the low-rank product to the whole weight. On
quantised experts that fails silently: no parameters are created, or they get no gradient. This module instead adds two
products, input times packed weight and input times the two factors, which gives the same sum. The saved tensors have
PEFT's own names and shapes, so PEFT alone can load the adapter on a bf16 base.
"""

import contextlib
from collections.abc import Iterator

import torch
from peft import LoraConfig
from peft.tuners.lora import layer as peft_lora

from dsocr.models.quantized_experts import Experts4bit


class ParamWrapper(peft_lora.ParamWrapper):
    """PEFT's wrapper of a stacked parameter, for a packed one. PEFT nests two by this class name: keep it."""

    def get_param(self) -> torch.Tensor:
        """A stand-in without memory: it has shape `[n_experts, out_features, in_features]`, dtype and device of the
        unpacked weight, and PEFT uses nothing else."""
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
        """Refuse to merge.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "an adapter cannot be merged into 4-bit experts: rounding would destroy it. Load the base model without "
            "load_in_4bit, put the adapter on it with dsocr.load_adapter(), and merge there."
        )


def adapt_experts(config: LoraConfig) -> LoraConfig:
    """Register the wrapper for 4-bit experts' `target_parameters` in a LoRA configuration; returns the same object."""
    config._register_custom_module({Experts4bit: ParamWrapper})
    return config
