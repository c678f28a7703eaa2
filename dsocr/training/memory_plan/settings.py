"""What decides a run's memory, besides the model and the image geometry."""

from dataclasses import dataclass, replace

import torch


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
