"""Quantise a model that is already in memory: the counterpart to which `load_model(load_in_4bit=True)` is compared."""

import bitsandbytes
from torch import nn

from dsocr.models.quantization import is_skipped, keep_gradients_on_cpu, replace_experts
from dsocr.models.quantized_experts import WEIGHTS, Experts4bit


def quantize_model(model: nn.Module) -> nn.Module:
    """Pack linear layers and experts of a bare native model in place, as `--load_in_4bit` does; returns the model."""
    linears = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and not is_skipped(name, quantize_vision=False)
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
    replace_experts(model)
    for experts in model.modules():
        if isinstance(experts, Experts4bit):
            for name in WEIGHTS:
                experts.pack(name)
    keep_gradients_on_cpu(model)
    model.is_loaded_in_4bit = True
    return model
