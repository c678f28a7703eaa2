"""How much memory a run will need, before anything is loaded.

The model is built from its real config out of fake tensors, which have shapes and no memory. One training step and one
evaluation batch are run on them, and the bytes of the live tensors are counted (`LiveMemory`), so that checkpointing,
frozen vision and expanded 4-bit weights need no formulas of their own.
"""

from dataclasses import asdict, dataclass, replace

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch._subclasses import FakeTensorMode
from transformers import DynamicCache, PreTrainedConfig
from transformers.initialization import no_init_weights
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction

from dsocr.images import ImageGeometry
from dsocr.memory.live_memory import LiveMemory
from dsocr.models.freezing import freeze_vision
from dsocr.models.loading import MODEL_CLASSES


CARDS_GIB = (4, 6, 8, 12, 16, 24, 80)
# What a CUDA context and the allocator's rounding take beside the tensors. An assumption: recipes/measure_memory.py
# measures the true value on a card.
RESERVED_BYTES = int(0.6 * 2**30)
PROMPT_TOKENS = 6
# bitsandbytes' 8-bit optimizers: two states of one byte, and a scale per 256 values.
_BYTES_PER_8BIT_PARAMETER = 2 + 2 * 4 / 256


@dataclass(frozen=True)
class MemorySettings:
    """What decides a run's memory, besides model and geometry.

    Attributes:
        dtype: Type of the weights that are not quantised.
        load_in_4bit: Whether linear layers and routed experts are packed.
        quantize_vision: Whether the vision side is packed too.
        quantize_experts: `False`: bitsandbytes as it is, which leaves the routed experts in 16 bit.
        target_modules: LoRA's target modules; `None` trains nothing.
        target_parameters: LoRA's target parameters (routed experts).
        lora_r: LoRA's rank.
        batch_size: Training batch.
        eval_batch_size: Batch that evaluation generates with.
        answer_tokens: Longest answer, trained on or generated.
        checkpointing: Activation checkpointing.
        optim: Name of the optimizer, as TrainingArguments has it.
        compact_head: The loss is computed at answer positions alone (TRL with Triton, on a GPU).
    """

    dtype: torch.dtype = torch.bfloat16
    load_in_4bit: bool = False
    quantize_vision: bool = False
    quantize_experts: bool = True
    target_modules: str | list[str] | None = None
    target_parameters: list[str] | None = None
    lora_r: int = 16
    batch_size: int = 2
    eval_batch_size: int = 8
    answer_tokens: int = 256
    checkpointing: bool = True
    optim: str = "adamw_torch_fused"
    compact_head: bool = True


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of a run. `weights_bytes` to `optimizer_bytes` stay; each phase's bytes come on top, one phase at a time.

    Attributes:
        weights_bytes: Base model.
        adapter_bytes: LoRA.
        gradient_bytes: Gradients of what is trained.
        optimizer_bytes: Optimizer states.
        vision_bytes: Peak of the vision side, on top of the first four.
        language_bytes: Peak of the language model's forward and backward, its saved activations included.
        logits_bytes: Peak of the loss over the vocabulary, saved activations included.
        update_bytes: Peak of the optimizer's step.
        evaluation_bytes: Peak of generating one batch, KV cache included.
        peak_bytes: The four that stay, and the largest phase.
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
        """Whether the run fits a card of so many GiB, the reserve for context and rounding included."""
        return self.peak_bytes + RESERVED_BYTES <= card_gib * 2**30

    def to_dict(self) -> dict:
        """All figures, and the cards that the run fits."""
        return {
            **asdict(self),
            "reserved_bytes": RESERVED_BYTES,
            "fits_gib": [card for card in CARDS_GIB if self.fits(card)],
        }


class _ExpandedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, layer):
        ctx.layer = layer
        return nn.functional.linear(rows, layer.expanded(), layer.bias)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.layer.expanded(), None


class _PackedLinear(nn.Linear):
    """The memory of bitsandbytes' Linear4bit; the original cannot be made of fake tensors."""

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.compute_dtype = linear.weight.dtype
        blocks = linear.weight.numel() // 64
        self.weight = nn.Parameter(torch.empty(linear.weight.numel() // 2, dtype=torch.uint8), requires_grad=False)
        # A byte per block, and four per 256 blocks.
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


def _shape_of_model(config: PreTrainedConfig, settings: MemorySettings) -> nn.Module:
    import bitsandbytes.functional as bnb

    # bitsandbytes keeps its code tables in a cache; they must be real.
    bnb.quantize_4bit(torch.zeros(64, 64), compress_statistics=True)
    default = torch.get_default_dtype()
    torch.set_default_dtype(settings.dtype)
    try:
        with torch.device("meta"), no_init_weights():
            model = MODEL_CLASSES[config.model_type](config)
            freeze_vision(model)
            model.requires_grad_(settings.target_modules is None)
            if settings.load_in_4bit:
                _pack(model, settings)
            return model
    finally:
        torch.set_default_dtype(default)


def _materialize_fakes(model: nn.Module) -> None:
    """Replace meta tensors by fake ones on the CPU: they run the operations that real ones would run."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(name, nn.Parameter(fake, requires_grad=parameter.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype), persistent=False)


def _adapted(model: nn.Module, settings: MemorySettings) -> nn.Module:
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


def largest_image(geometry: ImageGeometry) -> tuple[int, int]:
    """Width and height of an image that costs the most tokens of a mode: a column of as many tiles as there may be."""
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
    """Vision features of a batch, `[batch, image tokens, hidden]`."""
    features = model.get_image_features(**_pixels(geometry, batch_size, model.dtype), return_dict=True).pooler_output
    return torch.stack(list(features))


def _embed(model: nn.Module, features: torch.Tensor, text_tokens: int) -> torch.Tensor:
    ids = torch.empty(features.shape[0], text_tokens, dtype=torch.long)
    embedded = model.get_input_embeddings()(ids)
    together = torch.cat([features.to(embedded.dtype), embedded], dim=1)
    # As `enable_input_require_grads` does for checkpointing.
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


def _train_step(model, adapted, geometry, settings, memory, static) -> dict[str, int]:
    phases = {}
    adapted.train()
    if settings.checkpointing:
        # Fake tensors have no random state to keep.
        model.activation_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    memory.restart_peak()
    features = _see(model, geometry, settings.batch_size)
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
    phases["language_bytes"] = max(forward, memory.peak - static)
    return phases


def _evaluate(model, adapted, geometry, settings, memory, static) -> int:
    adapted.eval()
    if settings.checkpointing:
        model.activation_checkpointing_disable()
    memory.restart_peak()
    with torch.no_grad():
        features = _see(model, geometry, settings.eval_batch_size)
        inputs = _embed(model, features, PROMPT_TOKENS).detach()
        del features
        cache = DynamicCache(config=model.config.get_text_config())
        model.model.language_model(inputs_embeds=inputs, use_cache=True, past_key_values=cache)
        text = model.config.get_text_config()
        per_token = 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
        grown = settings.eval_batch_size * settings.answer_tokens * per_token * settings.dtype.itemsize
        logits = settings.eval_batch_size * text.vocab_size * 4 * 3
        full_cache = memory.live - static + grown * text.num_hidden_layers
        return max(memory.peak - static, full_cache + logits)


def plan_memory(config: PreTrainedConfig, geometry: ImageGeometry, settings: MemorySettings) -> MemoryPlan:
    """Count what a run will need.

    Args:
        config: Native config of the model.
        geometry: Image geometry; the largest image of its mode is assumed, in every row.
        settings: Everything else.

    Returns:
        The plan. On a GPU its `peak_bytes` are the allocator's `max_memory_allocated`, without context and rounding.
    """
    model = _shape_of_model(config, settings)
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    adapted = _adapted(model, settings)
    with FakeTensorMode():
        _materialize_fakes(adapted)
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        gradients = sum(parameter.numel() * parameter.element_size() for parameter in trained)
        adapter = 0 if settings.target_modules is None else gradients
        optimizer = _optimizer_bytes(trained, settings.optim)
        with LiveMemory() as memory:
            memory.follow([*adapted.parameters(), *adapted.buffers()])
            # Gradients are there from the first micro-batch on.
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            static = memory.live
            phases = _train_step(model, adapted, geometry, settings, memory, static)
            # foreach optimizers hold a copy or two of the gradients while they update.
            phases["update_bytes"] = gradients
            phases["evaluation_bytes"] = _evaluate(model, adapted, geometry, settings, memory, static)
    stays = weights + adapter + gradients + optimizer
    return MemoryPlan(
        weights_bytes=weights,
        adapter_bytes=adapter,
        gradient_bytes=gradients,
        optimizer_bytes=optimizer,
        **phases,
        peak_bytes=stays + max(phases.values()),
        trainable_parameters=sum(parameter.numel() for parameter in trained),
        image_tokens=geometry.count_tokens(*largest_image(geometry)),
    )


def cheaper_settings(settings: MemorySettings) -> dict[str, MemorySettings]:
    """The flags that could save memory, each as settings with only that flag changed."""
    options = {}
    if not settings.load_in_4bit:
        options["--load_in_4bit"] = replace(settings, load_in_4bit=True)
    elif not settings.quantize_vision:
        options["--quantize_vision"] = replace(settings, quantize_vision=True)
    if not settings.checkpointing:
        options["--activation_checkpointing true"] = replace(settings, checkpointing=True)
    if settings.batch_size > 1:
        options["--per_device_train_batch_size 1"] = replace(settings, batch_size=1)
    if settings.eval_batch_size > 1:
        options["--per_device_eval_batch_size 1"] = replace(settings, eval_batch_size=1)
    if settings.target_parameters:
        options["no --lora_target_parameters"] = replace(settings, target_parameters=None)
    if "8bit" not in settings.optim:
        options["--optim paged_adamw_8bit"] = replace(settings, optim="paged_adamw_8bit")
    return options
