"""Export an adapter under upstream's tensor names, for servers that apply LoRA to upstream's checkpoint.

Upstream's checkpoint has separate linear layers (gate, up, down) for every expert. A LoRA on a stacked weight equals
one LoRA per expert's layer, so it is split without loss. Upstream fuses some layers that are separate here (q, k and v
of v1's CLIP); no upstream adapter can express a LoRA on one of them, so the export is refused.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from dsocr.common.files import let_others_read, load_json, write_json, write_then_rename
from dsocr.common.run_files import ADAPTER_CARD_NAME, ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME


_PREFIX = "base_model.model."
_STACKED = re.compile(r"(.*\.mlp\.experts)((?:\.base_layer)?)$")


def upstream_module_name(model: PreTrainedModel, name: str) -> str | None:
    """Upstream's name of a linear layer; `None` if upstream fuses it with others.

    Args:
        model: The native model; its checkpoint rules give the name.
        name: Native path of the layer, `model.language_model.layers.0.self_attn.q_proj`.
    """
    weight = model.get_submodule(name).weight
    found = list(revert_weight_conversion(model, {f"{name}.weight": weight}))
    if len(found) != 1 or not found[0].endswith(".weight"):
        return None
    renamed = found[0].removesuffix(".weight")
    # A rule that fuses several layers also renames the first of them when it comes alone: compare the last part.
    return renamed if renamed.rpartition(".")[2] == name.rpartition(".")[2] or "projector" in name else None


def _split_expert_pairs(
    experts: str, which: str, down: torch.Tensor, up: torch.Tensor, n_experts: int
) -> dict[str, torch.Tensor]:
    """Split PEFT's stacked factors `[r * E, in]`, `[out, r * E]` into `[r, in]`, `[out, r]` per expert's layer."""
    first = down.reshape(n_experts, -1, down.shape[-1])
    second = up.reshape(up.shape[0], -1, n_experts).permute(2, 0, 1)
    names = ("gate_proj", "up_proj") if which == "gate_up_proj" else ("down_proj",)
    pairs = {}
    for expert in range(n_experts):
        for name, part in zip(names, second[expert].chunk(len(names), dim=0), strict=True):
            layer = f"{experts}.{expert}.{name}"
            pairs[f"{layer}.lora_A.weight"] = first[expert].contiguous().clone()
            pairs[f"{layer}.lora_B.weight"] = part.contiguous().clone()
    return pairs


def _stacked_parameter(name: str) -> str:
    # PEFT nests one wrapper per parameter, in the module's parameter order: the last parameter has the outer wrapper.
    return "gate_up_proj" if name.endswith(".base_layer") else "down_proj"


def upstream_adapter(model: PreTrainedModel, stored: dict[str, torch.Tensor], parameters: list[str]) -> dict:
    """Rename an adapter's tensors, and split those of stacked experts.

    Args:
        model: The native base model.
        stored: Tensors of `adapter_model.safetensors`.
        parameters: The adapter's `target_parameters`.

    Returns:
        Tensors by upstream's name, with PEFT's prefix and suffixes.

    Raises:
        ValueError: if upstream fuses an adapted layer with others; the message names it.
    """
    both = len({parameter.rpartition(".")[2] for parameter in parameters}) == 2
    exported: dict[str, torch.Tensor] = {}
    for key, tensor in stored.items():
        layer, _, factor = key.removeprefix(_PREFIX).rpartition(".lora_")
        stacked = _STACKED.fullmatch(layer)
        if stacked:
            if factor != "A.weight":
                continue
            which = _stacked_parameter(layer) if both else parameters[0].rpartition(".")[2]
            experts = stacked[1]
            n_experts = model.get_submodule(experts).num_experts
            renamed = experts.replace("model.language_model.", "model.", 1)
            other = stored[f"{_PREFIX}{layer}.lora_B.weight"]
            pairs = _split_expert_pairs(renamed, which, tensor, other, n_experts)
            exported |= {f"{_PREFIX}{name}": value for name, value in pairs.items()}
            continue
        name = upstream_module_name(model, layer)
        if name is None:
            raise ValueError(
                f"{layer}: upstream's checkpoint has this layer fused with others, so a LoRA on it cannot be written in "
                "upstream's names. Merge the adapter instead (recipes/merge.py without --adapter_only)."
            )
        exported[f"{_PREFIX}{name}.lora_{factor}"] = tensor
    return exported


def export_adapter(model: PreTrainedModel, folder: str | Path, output_dir: str | Path) -> int:
    """Write a saved adapter in upstream's names.

    Args:
        model: The native base model.
        folder: Folder of the saved adapter.
        output_dir: Where to write `adapter_model.safetensors` and `adapter_config.json`.

    Returns:
        The number of tensors written.

    Raises:
        ValueError: if the adapter has no upstream form (a fused layer, DoRA, biases, saved modules).
    """
    folder, output_dir = Path(folder), Path(output_dir)
    config = load_json(folder / ADAPTER_CONFIG_NAME)
    for field in ("use_dora", "modules_to_save", "lora_bias"):
        if config.get(field):
            raise ValueError(f"{folder}: {field}={config[field]!r} has no form in upstream's names; merge the adapter.")
    stored = load_file(folder / ADAPTER_WEIGHTS_NAME)
    exported = upstream_adapter(model, stored, config.get("target_parameters") or [])
    output_dir.mkdir(parents=True, exist_ok=True)
    with write_then_rename(output_dir / ADAPTER_WEIGHTS_NAME) as partial:
        save_file(exported, partial, metadata={"format": "pt"})
    let_others_read(output_dir)
    # Use full paths: a bare name would match layers of the vision encoders too.
    config["target_modules"] = sorted({key.removeprefix(_PREFIX).partition(".lora_")[0] for key in exported})
    config["target_parameters"] = None
    config["auto_mapping"] = None
    write_json(output_dir / ADAPTER_CONFIG_NAME, config)
    if (folder / ADAPTER_CARD_NAME).is_file():
        write_json(output_dir / ADAPTER_CARD_NAME, load_json(folder / ADAPTER_CARD_NAME))
    return len(exported)
