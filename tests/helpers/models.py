"""Models for tests: the built-in base, one quantised in memory, and checkpoints with changed tensors."""

import bitsandbytes
from safetensors.torch import load_file, save_file
from torch import nn

from dsocr.models import load_model
from dsocr.models.loading import TINY_BASE
from dsocr.models.quantization import is_skipped, keep_gradients_on_cpu, replace_experts
from dsocr.models.quantized_experts import WEIGHTS, Experts4bit
from dsocr.samples.processor import OcrProcessor


def load_tiny_base():
    """The built-in base (fp32) and its processor."""
    return load_model(str(TINY_BASE), dtype="float32"), OcrProcessor.from_pretrained(TINY_BASE)


def rewrite_tensors(path, change) -> None:
    """Let `change` edit the tensors of a safetensors file in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def quantize_model(model: nn.Module) -> nn.Module:
    """Pack linear layers and experts of a bare native model in place; returns the model.

    `load_model(load_in_4bit=True)`, which packs while it loads, is compared with this.
    """
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
