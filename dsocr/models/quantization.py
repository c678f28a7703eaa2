"""Load base models in 4 bit: bitsandbytes packs linear layers, `quantized_experts` packs routed experts.

Importing this module imports bitsandbytes and registers one quantization method, `dsocr_4bit`, with transformers.
Never pass such a model to PEFT's `prepare_model_for_kbit_training`: it would upcast every weight still in 16 bit.
"""

import copy
import logging
from typing import Any

import bitsandbytes
import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.core_model_loading import ConversionOps, WeightConverter
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name

from dsocr.models.frozen_experts import EXPERTS_CLASSES
from dsocr.models.quantized_experts import WEIGHTS, Experts4bit


logger = logging.getLogger(__name__)

METHOD = "dsocr_4bit"
VISION_MODULES = ("model.vision_tower", "model.multi_modal_projector")


@register_quantization_config(METHOD)
class OcrQuantizationConfig(BitsAndBytesConfig):
    """bitsandbytes' 4-bit settings, extended to the routed experts.

    Args:
        quantize_vision: Quantise the vision tower and the projector too.
        compute_dtype: The dtype of unpacked weights.
        quant_type: `"nf4"` or `"fp4"`.
        double_quant: Quantise the blocks' scales as well.
    """

    def __init__(
        self,
        quantize_vision: bool = False,
        compute_dtype: torch.dtype | str = torch.bfloat16,
        quant_type: str = "nf4",
        double_quant: bool = True,
        **kwargs,
    ):
        self.quantize_vision = quantize_vision
        kwargs |= {
            "load_in_4bit": True,
            "bnb_4bit_compute_dtype": kwargs.pop("bnb_4bit_compute_dtype", compute_dtype),
            "bnb_4bit_quant_type": kwargs.pop("bnb_4bit_quant_type", quant_type),
            "bnb_4bit_use_double_quant": kwargs.pop("bnb_4bit_use_double_quant", double_quant),
            "llm_int8_skip_modules": skipped_modules(quantize_vision),
        }
        super().__init__(**kwargs)
        self.quant_method = METHOD


def skipped_modules(quantize_vision: bool) -> list[str]:
    """Full paths of the modules to leave unquantised. (Routers, norms and embeddings are no linear layers.)"""
    return ["lm_head", *(() if quantize_vision else VISION_MODULES)]


def is_skipped(name: str, quantize_vision: bool) -> bool:
    """Whether the module at this path stays unquantised."""
    return any(name == skip or name.startswith(f"{skip}.") for skip in skipped_modules(quantize_vision))


def replace_experts(model: nn.Module, *, quant_type: str = "nf4", double_quant: bool = True) -> int:
    """Replace every stack of routed experts by an `Experts4bit`, not packed yet; returns how many."""
    names = [name for name, module in model.named_modules() if type(module).__name__ in EXPERTS_CLASSES]
    for name in names:
        experts = Experts4bit(model.get_submodule(name), quant_type=quant_type, double_quant=double_quant)
        model.set_submodule(name, experts.requires_grad_(False))
    return len(names)


def keep_gradients_on_cpu(model: nn.Module) -> None:
    """Switch off bitsandbytes' repacking of weights for CPUs with AVX512-BF16.

    It would repack a weight at the first evaluation, and a later backward would get no gradient.
    """
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


class _Quantize(ConversionOps):
    """Pack a tensor that has just been loaded; transformers creates one instance per tensor."""

    def __init__(self, hf_quantizer: "OcrQuantizer"):
        self.hf_quantizer = hf_quantizer

    def convert(self, input_dict, full_layer_name=None, model=None, **kwargs):
        packed: dict[str, Any] = {}
        for name, value in input_dict.items():
            module, weight_name = get_module_from_name(model, name)
            if not isinstance(module, Experts4bit):
                packed |= Bnb4bitQuantize(self.hf_quantizer).convert({name: value}, full_layer_name, model, **kwargs)
                continue
            value = value[0] if isinstance(value, list) else value
            packed[name], scales = module.quantize(weight_name, value, self.hf_quantizer.device)
            self.hf_quantizer.scales.append((module, weight_name, scales))
        return packed


@register_quantizer(METHOD)
class OcrQuantizer(Bnb4BitHfQuantizer):
    """transformers' bitsandbytes loader, extended to stacked experts.

    Tensors are loaded one after the other. The experts of a layer are stacked on the CPU and move to the device one by
    one, so the device never holds more than the packed model and the largest tensor that stays in 16 bit.
    """

    quantization_config: OcrQuantizationConfig

    def _process_model_before_weight_loading(self, model, device_map, **kwargs):
        devices = set((device_map or {"": "cpu"}).values())
        if len(devices) != 1:
            raise ValueError(f"device_map={device_map}: a 4-bit model lives on one device.")
        self.device = torch.device(devices.pop())
        self.scales: list[tuple[Experts4bit, str, dict[str, torch.Tensor]]] = []
        super()._process_model_before_weight_loading(model, device_map, **kwargs)
        config = self.quantization_config
        replace_experts(model, quant_type=config.bnb_4bit_quant_type, double_quant=config.bnb_4bit_use_double_quant)

    def _is_expert_weight(self, model, param_name: str) -> bool:
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, Experts4bit) and name in WEIGHTS

    def param_needs_quantization(self, model, param_name: str, **kwargs) -> bool:
        return self._is_expert_weight(model, param_name) or super().param_needs_quantization(model, param_name)

    def get_quantize_ops(self):
        return _Quantize(self)

    def update_weight_conversions(self, weight_conversions, model):
        conversions = []
        for conversion in super().update_weight_conversions(weight_conversions, model):
            if isinstance(conversion, WeightConverter):
                conversion = copy.deepcopy(conversion)
                conversion.force_cpu = True
            conversions.append(conversion)
        return conversions

    def _process_model_after_weight_loading(self, model, **kwargs):
        # Set the scales only now: while loading, transformers leaves buffers missing from the file uninitialised.
        for experts, name, scales in self.scales:
            experts.set_scales(name, scales)
        self.scales = []
        keep_gradients_on_cpu(model)
        return super()._process_model_after_weight_loading(model, **kwargs)

    def is_serializable(self):
        return False


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights, with the scales of packed ones."""
    tensors = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit) and module.weight.quant_state is not None:
            tensors += list(_state_tensors(module.weight.quant_state))
    unique = {id(tensor): tensor for tensor in tensors}
    return sum(tensor.numel() * tensor.element_size() for tensor in unique.values())


def _state_tensors(state) -> list[torch.Tensor]:
    nested = state.state2
    found = [state.absmax, state.code]
    if nested is not None:
        found += [state.offset, nested.absmax, nested.code]
    return [tensor for tensor in found if tensor is not None]
