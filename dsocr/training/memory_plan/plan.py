"""Plan how much memory a run needs, before anything is loaded.

The model is built from its real config out of fake tensors, which have shapes and no memory. They run one training step
and one evaluation batch, and `LiveMemory` counts their bytes, so checkpointing, frozen vision and unpacked 4-bit
weights need no formulas of their own.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import DynamicCache, PreTrainedConfig
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

from dsocr.samples.geometry import ImageGeometry
from dsocr.training.memory_plan.fake_models import adapt, materialize_fakes, shape_of_model
from dsocr.training.memory_plan.layers import SHALLOW, count_sparse, make_shallow
from dsocr.training.memory_plan.live_memory import LiveMemory
from dsocr.training.memory_plan.settings import MemorySettings


CARDS_GIB = (4, 6, 8, 12, 16, 24, 80)
# Memory for the CUDA context and the allocator's rounding, beside the tensors. An assumption: recipes/measure_memory.py
# measures the true value on a card.
RESERVED_BYTES = int(0.6 * 2**30)
PROMPT_TOKENS = 6
# bitsandbytes' 8-bit optimizers keep two states of one byte, and a scale per 256 values.
_BYTES_PER_8BIT_PARAMETER = 2 + 2 * 4 / 256


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a run. `weights_bytes` to `optimizer_bytes` stay allocated; one phase at a time comes on top.

    Attributes:
        weights_bytes: Base model.
        adapter_bytes: LoRA.
        gradient_bytes: Gradients of the trained parameters.
        optimizer_bytes: Optimizer states.
        vision_bytes: Peak of the vision side, on top of the first four.
        language_bytes: Peak of the language model's forward and backward, its saved activations included.
        logits_bytes: Peak of the loss over the vocabulary, saved activations included.
        update_bytes: Peak of the optimizer's step.
        evaluation_bytes: Peak of generating one batch, KV cache included.
        peak_bytes: The first four plus the largest phase.
        trainable_parameters: Number of trained parameters.
        image_tokens: Image tokens of the largest image.
    """

    weights_bytes: int
    adapter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    vision_bytes: int
    language_bytes: int
    logits_bytes: int
    update_bytes: int
    evaluation_bytes: int
    peak_bytes: int
    trainable_parameters: int
    image_tokens: int

    @property
    def training_peak_bytes(self) -> int:
        """The peak without evaluation."""
        phases = (self.vision_bytes, self.language_bytes, self.logits_bytes, self.update_bytes)
        return self.weights_bytes + self.adapter_bytes + self.gradient_bytes + self.optimizer_bytes + max(phases)

    def fits(self, card_gib: float) -> bool:
        """Whether the run fits a card of `card_gib` GiB, the reserve for context and rounding included."""
        return self.peak_bytes + RESERVED_BYTES <= card_gib * 2**30

    def to_dict(self) -> dict:
        """All figures, and the cards large enough for the run."""
        return {
            **asdict(self),
            "reserved_bytes": RESERVED_BYTES,
            "fits_gib": [card for card in CARDS_GIB if self.fits(card)],
        }


def largest_image(geometry: ImageGeometry) -> tuple[int, int]:
    """Width and height of the image with the most tokens in a mode: a column of the largest number of tiles."""
    if not geometry.tile_size:
        return geometry.base_size, geometry.base_size
    return geometry.tile_size, geometry.tile_size * geometry.max_tiles


def _pixels(geometry: ImageGeometry, batch_size: int, dtype: torch.dtype) -> dict:
    columns, rows = geometry.choose_grid(*largest_image(geometry))
    inputs = {"pixel_values": torch.empty(batch_size, 3, geometry.base_size, geometry.base_size, dtype=dtype)}
    if geometry.tile_size:
        tiles = columns * rows
        inputs["pixel_values_local"] = torch.empty(
            batch_size * tiles, 3, geometry.tile_size, geometry.tile_size, dtype=dtype
        )
        inputs["num_local_patches"] = [tiles] * batch_size
        if geometry.version != "v2":
            inputs["patches_grid"] = [[columns, rows]] * batch_size
    return inputs


def _see(model: nn.Module, geometry: ImageGeometry, batch_size: int) -> torch.Tensor:
    """Compute vision features of a batch, `[batch, image tokens, hidden]`."""
    features = model.get_image_features(**_pixels(geometry, batch_size, model.dtype), return_dict=True).pooler_output
    return torch.stack(list(features))


def _embed(model: nn.Module, features: torch.Tensor, text_tokens: int) -> torch.Tensor:
    ids = torch.empty(features.shape[0], text_tokens, dtype=torch.long)
    embedded = model.get_input_embeddings()(ids)
    together = torch.cat([features.to(embedded.dtype), embedded], dim=1)
    # Require a gradient, as `enable_input_require_grads` does for checkpointing.
    return together if together.requires_grad else together.requires_grad_()


def _loss(model: nn.Module, hidden: torch.Tensor, settings: MemorySettings) -> torch.Tensor:
    head = model.get_output_embeddings()
    rows = hidden[:, -settings.answer_tokens - 1 : -1] if settings.compact_head else hidden[:, :-1]
    rows = rows.reshape(-1, rows.shape[-1])
    labels = torch.empty(rows.shape[0], dtype=torch.long)
    fields = ("log_probs", "entropy", "is_top1")
    per_token = _ChunkedLogProbFunction.apply(
        rows, head.weight, head.bias, labels, 1.0, _CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0, fields
    )
    return -per_token[0].mean()


def _optimizer_bytes(trained: list[torch.Tensor], optim: str) -> int:
    count = sum(parameter.numel() for parameter in trained)
    if "8bit" in optim:
        return int(count * _BYTES_PER_8BIT_PARAMETER)
    return count * 8


# Parts of the language model's peak in training, and of an evaluation's.
_FORWARD, _BACKWARD = "language_forward", "language_backward"
_READ_VISION, _READ_PROMPT, _READ_ANSWER = "evaluation_vision", "evaluation_prompt", "evaluation_answer"

# Makes the vision features of a batch of the given size, `[batch, image tokens, hidden]`.
_See = Callable[[int], torch.Tensor]


def _train_step(model, adapted, see: _See, settings, memory, static) -> dict[str, int]:
    phases = {}
    adapted.train()
    if settings.checkpointing:
        # Don't preserve the random state: fake tensors have none.
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    memory.restart_peak()
    features = see(settings.batch_size)
    phases["vision_bytes"] = memory.peak - static
    memory.restart_peak()
    inputs = _embed(model, features, PROMPT_TOKENS + settings.answer_tokens)
    hidden = model.model.language_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    forward = memory.peak - static
    memory.restart_peak()
    loss = _loss(model, hidden, settings)
    phases["logits_bytes"] = memory.peak - static
    memory.restart_peak()
    del hidden
    loss.backward()
    return phases | {_FORWARD: forward, _BACKWARD: memory.peak - static}


def _evaluate(model, adapted, see: _See, settings, memory, static) -> dict[str, int]:
    adapted.eval()
    if settings.checkpointing:
        model.activation_checkpointing_disable()
    memory.restart_peak()
    with torch.no_grad():
        features = see(settings.eval_batch_size)
        vision = memory.peak - static
        memory.restart_peak()
        inputs = _embed(model, features, PROMPT_TOKENS).detach()
        del features
        cache = DynamicCache(config=model.config.get_text_config())
        model.model.language_model(inputs_embeds=inputs, use_cache=True, past_key_values=cache)
        text = model.config.get_text_config()
        per_token = 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
        grown = settings.eval_batch_size * settings.answer_tokens * per_token * settings.dtype.itemsize
        logits = settings.eval_batch_size * text.vocab_size * 4 * 3
        full_cache = memory.live - static + grown * text.num_hidden_layers
    return {_READ_VISION: vision, _READ_PROMPT: memory.peak - static, _READ_ANSWER: full_cache + logits}


def _combine(phases: dict[str, int]) -> dict[str, int]:
    """The largest part of each phase. Parts are extrapolated one by one: each grows evenly with the layers, their maximum not."""
    return {
        "vision_bytes": phases["vision_bytes"],
        "language_bytes": max(phases[_FORWARD], phases[_BACKWARD]),
        "logits_bytes": phases["logits_bytes"],
        "evaluation_bytes": max(phases[_READ_VISION], phases[_READ_PROMPT], phases[_READ_ANSWER]),
    }


def _measure_phases(
    config: PreTrainedConfig, geometry: ImageGeometry, settings: MemorySettings, *, with_vision: bool = True
) -> dict[str, int]:
    """Peaks of a step's phases on top of weights, gradients and optimizer, by a step on fake tensors.

    Without vision, features are taken as given, and only what the language model takes is returned.
    """
    model = shape_of_model(config, settings)
    adapted = adapt(model, settings)
    with FakeTensorMode():
        materialize_fakes(adapted)
        with LiveMemory() as memory:
            memory.follow([*adapted.parameters(), *adapted.buffers()])
            # Allocate gradients now: they exist from the first micro-batch on.
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)
            static = memory.live

            def see(batch_size: int) -> torch.Tensor:
                if with_vision:
                    return _see(model, geometry, batch_size)
                tokens = geometry.count_tokens(*largest_image(geometry))
                return torch.empty(batch_size, tokens, config.text_config.hidden_size, dtype=model.dtype)

            phases = _train_step(model, adapted, see, settings, memory, static)
            phases |= _evaluate(model, adapted, see, settings, memory, static)
    seen = ("vision_bytes", _READ_VISION)
    return phases if with_vision else {name: size for name, size in phases.items() if name not in seen}


def plan_memory(config: PreTrainedConfig, geometry: ImageGeometry, settings: MemorySettings) -> MemoryPlan:
    """Count the memory that a run needs.

    Args:
        config: Native config of the model.
        geometry: Image geometry; every row is assumed to hold the largest image of its mode.
        settings: Everything else.

    Returns:
        The plan. On a GPU its `peak_bytes` are the allocator's `max_memory_allocated`, without context and rounding.
    """
    model = shape_of_model(config, settings)
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    adapted = adapt(model, settings)
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained.values())
    adapter = 0 if settings.target_modules is None else gradients
    optimizer = _optimizer_bytes(list(trained.values()), settings.optim)
    # Fake tensors know the experts' grouped product in bfloat16 alone. What float32 doubles is most of a phase, so twice a
    # phase is a little too much.
    factor, settings = settings.dtype.itemsize // 2, replace(settings, dtype=torch.bfloat16)
    # A frozen vision side keeps nothing for a backward pass, however deep it is.
    if any("vision_tower" in name for name in trained) or count_sparse(config) <= SHALLOW + 1:
        phases = _measure_phases(config, geometry, settings)
    else:
        phases = _measure_phases(make_shallow(config, SHALLOW), geometry, settings)
        deeper = _measure_phases(make_shallow(config, SHALLOW + 1), geometry, settings, with_vision=False)
        for name, size in deeper.items():
            phases[name] += (count_sparse(config) - SHALLOW) * (size - phases[name])
    phases = {name: factor * size for name, size in _combine(phases).items()}
    # foreach optimizers hold a copy or two of the gradients during the update.
    phases["update_bytes"] = gradients
    return MemoryPlan(
        weights_bytes=weights,
        adapter_bytes=adapter,
        gradient_bytes=gradients,
        optimizer_bytes=optimizer,
        **phases,
        peak_bytes=weights + adapter + gradients + optimizer + max(phases.values()),
        trainable_parameters=sum(parameter.numel() for parameter in trained.values()),
        image_tokens=geometry.count_tokens(*largest_image(geometry)),
    )
