"""Check LoRA's targets against the model before PEFT changes it."""

import re

from peft import LoraConfig
from torch import nn


def _is_target(name: str, targets: str | list[str] | set[str] | None) -> bool:
    if targets is None or targets == "all-linear":
        return False
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def prepare_adapter(model: nn.Module, config: LoraConfig) -> LoraConfig:
    """Check a LoRA configuration against a model, and adapt it to 4-bit experts if there are any.

    Args:
        model: A bare native model, quantised or not.
        config: The configuration; changed in place.

    Returns:
        The same configuration.

    Raises:
        ValueError: when a target module is the routed experts (stacked parameters, not linear layers), or a target
            parameter names none of the model's stacked weights.
    """
    experts = {
        name: module
        for name, module in model.named_modules()
        if isinstance(getattr(module, "gate_up_proj", None), nn.Parameter)
    }
    hit = [name for name in experts if _is_target(name, config.target_modules)]
    inside = [
        f"{name}.{weight}"
        for name, module in experts.items()
        for weight, _ in [*module.named_parameters(), *module.named_buffers()]
        if _is_target(f"{name}.{weight}", config.target_modules)
    ]
    if hit or (inside and not any(_is_target(name, config.target_modules) for name, _ in model.named_modules())):
        raise ValueError(
            f"--lora_target_modules {config.target_modules!r} matches the routed experts ({(hit or inside)[0]}), which "
            "are stacked parameters and no linear layers. Leave them out of it, and train them with "
            "--lora_target_parameters mlp.experts.gate_up_proj mlp.experts.down_proj --lora_dropout 0."
        )
    weights = [f"{name}.{weight}" for name in experts for weight in ("gate_up_proj", "down_proj")]
    for target in config.target_parameters or ():
        if not any(weight == target or weight.endswith(f".{target}") for weight in weights):
            raise ValueError(
                f"--lora_target_parameters {target}: the model has no stacked weight of that name. The routed experts "
                "are mlp.experts.gate_up_proj and mlp.experts.down_proj."
            )
    if getattr(model, "is_loaded_in_4bit", False):
        # Import here: this module imports bitsandbytes.
        from dsocr.models.expert_lora import adapt_experts

        adapt_experts(config)
    return config


# Attention, dense MLP and shared experts of the language model, for v1 and v2, bare and 4-bit. Don't use bare names:
# the vision encoders have q_proj and v_proj too, and would get most of the adapter.
LANGUAGE_MODEL_TARGETS = (
    r".*language_model\.layers\.\d+\.(self_attn\.(q|k|v|o)_proj|mlp\.(shared_experts\.)?(gate|up|down)_proj)"
)
