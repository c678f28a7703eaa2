"""Quantise a model that is already in memory: random weights, for the lab and the tests.

`load_model(..., load_in_4bit=True)` quantises while the checkpoint loads and never holds the whole model.
"""

import bitsandbytes
from torch import nn

from dsocr.models.quantization import is_skipped, keep_gradients_on_cpu, replace_experts
from dsocr.models.quantized_experts import WEIGHTS, Experts4bit


def quantize_model(model: nn.Module, *, quantize_vision: bool = False, quantize_experts: bool = True) -> nn.Module:
    """Pack linear layers and experts in place, as NF4 with quantised scales.

    Args:
        model: A bare native model.
        quantize_vision: Quantise the vision tower and the projector too.
        quantize_experts: `False` leaves the routed experts in 16 bit, as bitsandbytes alone does.

    Returns:
        The same model.
    """
    linears = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and not is_skipped(name, quantize_vision)
    }
    for name, linear in linears.items():
        layer = bitsandbytes.nn.Linear4bit(
            linear.in_features,
            linear.out_features,
            bias=False,
            compute_dtype=linear.weight.dtype,
            quant_type="nf4",
            device="meta",
        )
        weight = bitsandbytes.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        layer.weight = weight.to(linear.weight.device)
        layer.bias = linear.bias
        model.set_submodule(name, layer.requires_grad_(False))
    if quantize_experts:
        replace_experts(model)
        for experts in model.modules():
            if isinstance(experts, Experts4bit):
                for name in WEIGHTS:
                    experts.pack(name)
    keep_gradients_on_cpu(model)
    model.is_loaded_in_4bit = True
    return model
