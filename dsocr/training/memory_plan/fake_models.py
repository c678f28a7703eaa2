"""Build models of fake tensors, with shapes but without memory: bare, packed in 4 bit, with LoRA."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from dsocr.models.freezing import freeze_vision
from dsocr.models.loading import find_model_class
from dsocr.models.sam_attention import split_global_attention
from dsocr.training.memory_plan.settings import MemorySettings


class _ExpandedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, layer):
        ctx.layer = layer
        return nn.functional.linear(rows, layer.expanded(), layer.bias)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.layer.expanded(), None


class _PackedLinear(nn.Linear):
    """Takes the same memory as bitsandbytes' Linear4bit, which cannot be built from fake tensors."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute_dtype = linear.weight.dtype
        blocks = linear.weight.numel() // 64
        self.weight = nn.Parameter(torch.empty(linear.weight.numel() // 2, dtype=torch.uint8), requires_grad=False)
        # One byte per block, and four per 256 blocks.
        self.register_buffer("scales", torch.empty(blocks + blocks // 64, dtype=torch.uint8))
        self.bias = linear.bias

    def expanded(self) -> torch.Tensor:
        return torch.empty(self.out_features, self.in_features, dtype=self.compute_dtype)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return _ExpandedProduct.apply(rows.to(self.compute_dtype), self)


def _pack(model: nn.Module, settings: MemorySettings) -> None:
    from dsocr.models.quantization import WEIGHTS, Experts4bit, is_skipped, replace_experts

    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and not is_skipped(name, settings.quantize_vision):
            model.set_submodule(name, _PackedLinear(module))
    if settings.quantize_experts:
        replace_experts(model)
        for experts in model.modules():
            if isinstance(experts, Experts4bit):
                for name in WEIGHTS:
                    experts.pack(name)


def shape_of_model(config: PreTrainedConfig, settings: MemorySettings) -> nn.Module:
    import bitsandbytes.functional as bnb

    # Quantise a real tensor first: bitsandbytes caches its code tables, and they must not be fake.
    bnb.quantize_4bit(torch.zeros(64, 64), compress_statistics=True)
    default = torch.get_default_dtype()
    torch.set_default_dtype(settings.dtype)
    try:
        with torch.device("meta"), no_init_weights():
            model = find_model_class(config.model_type)(config)
            split_global_attention(model)
            model.requires_grad_(settings.target_modules is None)
            freeze_vision(model)
            if settings.load_in_4bit:
                _pack(model, settings)
            return model
    finally:
        torch.set_default_dtype(default)


def materialize_fakes(model: nn.Module) -> None:
    """Replace meta tensors by fake ones on the CPU: fake tensors run the same operations as real ones."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype), persistent=False)


def adapt(model: nn.Module, settings: MemorySettings) -> nn.Module:
    if settings.target_modules is None:
        return model
    config = LoraConfig(
        r=settings.lora_r,
        target_modules=settings.target_modules,
        target_parameters=settings.target_parameters,
    )
    if settings.load_in_4bit and settings.quantize_experts:
        from dsocr.models.expert_lora import adapt_experts

        adapt_experts(config)
    return get_peft_model(model, config)
