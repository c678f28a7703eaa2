"""The steps of docs/memory.md on this device: 16 bit, bitsandbytes alone, 4 bit here, and LoRA on the packed experts."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from dsocr.lab.gpu_check.setup import CheckSetup, Figures, Probe
from dsocr.lab.memory import IMAGE_MODE, PRECISIONS, Precision, measure_steps, memory_step, plan_precision, sixteen_bit
from dsocr.lab.packing import quantize_model
from dsocr.models.quantization import weight_bytes
from dsocr.models.sam_attention import split_global_attention


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
EXPERTS_TITLE = "4 bit here, LoRA on the experts too"


def _measure(setup: CheckSetup, precision: Precision, target_parameters: list[str] | None) -> Figures:
    options = memory_step(setup.processor(IMAGE_MODE).geometry)
    if setup.on_gpu and precision.load_in_4bit:
        options = replace(options, optim="paged_adamw_8bit")
    model = setup.model(dtype=sixteen_bit()).requires_grad_(False)
    if precision.quantize_experts:
        # As the loader does; bitsandbytes by itself runs transformers' own vision.
        split_global_attention(model)
    if precision.load_in_4bit:
        quantize_model(model, quantize_vision=precision.quantize_vision, quantize_experts=precision.quantize_experts)
    figures: Figures = {"weights_bytes": weight_bytes(model)}
    figures |= measure_steps(model, options, target_parameters)
    figures["reserved_peak_bytes"] = torch.cuda.max_memory_reserved() if setup.on_gpu else None
    return figures | plan_precision(model.config, precision, options, target_parameters)


def quantized_probes(setup: CheckSetup) -> Iterator[Probe]:
    """Every precision of docs/memory.md, and LoRA on the packed experts."""
    for precision in PRECISIONS.values():
        yield precision.title, partial(_measure, setup, precision, None)
    yield EXPERTS_TITLE, partial(_measure, setup, PRECISIONS["4bit"], EXPERTS)
