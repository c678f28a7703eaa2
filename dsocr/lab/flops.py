"""Floating-point operations of a training step, and the rate of operations that a device reaches.

A multiplication and its addition count as two operations. Only the work that the mathematics needs is counted: a second
computation (checkpointing) and discarded results (padding, the vocabulary at positions without a label) count nothing.
Otherwise a wasteful step would show a better share of the device's rate.
"""

import statistics
import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig
from transformers.initialization import no_init_weights

from dsocr.lab.random_models import StepOptions
from dsocr.models.loading import find_model_class
from dsocr.samples.geometry import ImageGeometry


# Side of the square matrices whose product is timed, by kind of device: large enough to keep it busy.
MATRIX_SIDES = {"cpu": 2048, "cuda": 8192}
_PRODUCTS = 7


@dataclass(frozen=True)
class StepFlops:
    """Operations of one training step with LoRA on a frozen base.

    Attributes:
        vision: Tower and projector, forward.
        language: Language model, forward and backward. With frozen weights the backward pass of a product costs as much
            as its forward pass, and that of attention scores twice as much. LoRA's own products, under 1 %, are left out.
        head: Projection of the answers onto the vocabulary, forward and backward.
    """

    vision: int
    language: int
    head: int

    @property
    def total(self) -> int:
        return self.vision + self.language + self.head


def count_vision_flops(config: PreTrainedConfig, geometry: ImageGeometry, size: tuple[int, int]) -> int:
    """Forward operations of tower and projector for one image, counted on a model on the meta device."""
    config = type(config).from_dict(config.to_dict())
    config._attn_implementation = "eager"
    with torch.device("meta"), no_init_weights():
        model = find_model_class(config.model_type)(config)
        sides = [geometry.base_size] + [geometry.tile_size] * geometry.count_tiles(*size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            for side in sides:
                features = model.model.vision_tower(torch.empty(1, 3, side, side)).last_hidden_state
                model.model.multi_modal_projector(features)
    return counter.get_total_flops()


def _language_flops(config: PreTrainedConfig, length: int) -> tuple[int, int]:
    """Forward operations of the decoder layers for one sequence: those with weights, and those of attention scores."""
    text = config.get_text_config()
    hidden, layers = text.hidden_size, text.num_hidden_layers
    head_dim = getattr(text, "head_dim", None) or hidden // text.num_attention_heads
    queries, keys = text.num_attention_heads * head_dim, text.num_key_value_heads * head_dim
    attention = 2 * hidden * (2 * queries + 2 * keys)
    dense_layers = sum(kind == "dense" for kind in text.mlp_layer_types)
    dense = 6 * hidden * text.intermediate_size
    expert = 6 * hidden * text.moe_intermediate_size
    sparse = (text.num_experts_per_tok + text.n_shared_experts) * expert + 2 * hidden * text.n_routed_experts
    weights = length * (layers * attention + dense_layers * dense + (layers - dense_layers) * sparse)
    return weights, layers * 4 * queries * length * length


def count_step_flops(config: PreTrainedConfig, options: StepOptions) -> StepFlops:
    """Operations of one training step of a native model with that config."""
    text, tokens = config.get_text_config(), options.geometry.count_tokens(*options.image_size)
    weights, scores = _language_flops(config, 1 + tokens + options.answer_tokens)
    head = 2 * 2 * options.answer_tokens * text.hidden_size * text.vocab_size
    vision = count_vision_flops(config, options.geometry, options.image_size)
    batch_size = options.batch_size
    return StepFlops(batch_size * vision, batch_size * (2 * weights + 3 * scores), batch_size * head)


def measure_matrix_rate(device: torch.device, dtype: torch.dtype, side: int | None = None) -> float:
    """Operations per second of a large square product on a device, the median of several.

    Args:
        device: The device.
        dtype: Type of the matrices.
        side: Their side; `None` takes that of `MATRIX_SIDES`.
    """
    side = side or MATRIX_SIDES[device.type]
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(_PRODUCTS + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / statistics.median(seconds[1:])
