"""Settings that decide a run's memory, besides model and image geometry."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class MemorySettings:
    """Settings that decide a run's memory, besides model and geometry.

    Attributes:
        dtype: Dtype of unquantised weights.
        load_in_4bit: Whether linear layers and routed experts are packed.
        quantize_vision: Whether the vision side is packed too.
        quantize_experts: `False` leaves the routed experts in 16 bit, as bitsandbytes alone does.
        target_modules: LoRA's target modules; `None` trains all weights outside the vision side.
        target_parameters: LoRA's target parameters (routed experts).
        lora_r: LoRA's rank.
        batch_size: Training batch size.
        eval_batch_size: Batch size for generation in evaluation.
        answer_tokens: Longest answer in tokens, in training and generation.
        checkpointing: Activation checkpointing.
        optim: Name of the optimizer, as in TrainingArguments.
        compact_head: Compute the loss at answer positions only (see `CompactHead`).
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


def cheaper_settings(settings: MemorySettings) -> dict[str, MemorySettings]:
    """Build settings with one memory-saving flag changed each, by flag."""
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
