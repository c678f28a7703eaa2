"""Adapters in the names of the published checkpoint, for servers that apply LoRA while they load upstream's weights.

The published checkpoint has one linear layer per expert, with gate and up apart. A LoRA on a stacked weight is, expert
for expert, a LoRA on those layers, so it is split without loss. Where upstream has fused what is apart here (q, k and v of
v1's CLIP), no such adapter exists, and the export is refused.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from dsocr.common.files import load_json, write_json
from dsocr.common.run_files import ADAPTER_CARD_NAME, ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME


_PREFIX = "base_model.model."
_STACKED = re.compile(r"(.*\.mlp\.experts)((?:\.base_layer)?)$")


def upstream_module_name(model: PreTrainedModel, name: str) -> str | None:
    """Upstream's name of a linear layer, `None` when upstream has it fused with others.

    Args:
        model: The native model (its checkpoint rules are used).
        name: Native path of the layer, `model.language_model.layers.0.self_attn.q_proj`.
    """
    weight = model.get_submodule(name).weight
    found = list(revert_weight_conversion(model, {f"{name}.weight": weight}))
    if len(found) != 1 or not found[0].endswith(".weight"):
        return None
    renamed = found[0].removesuffix(".weight")
    # A rule that joins several layers renames the first of them alone as well.
    return renamed if renamed.rpartition(".")[2] == name.rpartition(".")[2] or "projector" in name else None


def _split_expert_pairs(
    experts: str, which: str, down: torch.Tensor, up: torch.Tensor, n_experts: int
) -> dict[str, torch.Tensor]:
    """PEFT's stacked factors `[r * E, in]`, `[out, r * E]` -> a pair `[r, in]`, `[out, r]` for every expert's layer."""
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
    # PEFT nests one wrapper per parameter, in the order of the module's parameters: the outer one has the last.
    return "gate_up_proj" if name.endswith(".base_layer") else "down_proj"


def upstream_adapter(model: PreTrainedModel, stored: dict[str, torch.Tensor], parameters: list[str]) -> dict:
    """Rename an adapter's tensors, splitting those on stacked experts.

    Args:
        model: The native base model.
        stored: Tensors of `adapter_model.safetensors`.
        parameters: The adapter's `target_parameters`.

    Returns:
        Tensors by upstream's names, PEFT's prefix and suffixes included.

    Raises:
        ValueError: naming a layer that upstream has fused with others.
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
        folder: The adapter as the training run saved it.
        output_dir: Where to write `adapter_model.safetensors` and `adapter_config.json`.

    Returns:
        The number of tensors written.

    Raises:
        ValueError: when the adapter uses what has no upstream form (a fused layer, DoRA, biases, saved modules).
    """
    folder, output_dir = Path(folder), Path(output_dir)
    config = load_json(folder / ADAPTER_CONFIG_NAME)
    for field in ("use_dora", "modules_to_save", "lora_bias"):
        if config.get(field):
            raise ValueError(f"{folder}: {field}={config[field]!r} has no form in upstream's names; merge the adapter.")
    stored = load_file(folder / ADAPTER_WEIGHTS_NAME)
    exported = upstream_adapter(model, stored, config.get("target_parameters") or [])
    output_dir.mkdir(parents=True, exist_ok=True)
    save_file(exported, output_dir / ADAPTER_WEIGHTS_NAME, metadata={"format": "pt"})
    # Full paths: a bare name would match layers of the vision encoders too.
    config["target_modules"] = sorted({key.removeprefix(_PREFIX).partition(".lora_")[0] for key in exported})
    config["target_parameters"] = None
    config["auto_mapping"] = None
    write_json(output_dir / ADAPTER_CONFIG_NAME, config)
    if (folder / ADAPTER_CARD_NAME).is_file():
        (output_dir / ADAPTER_CARD_NAME).write_bytes((folder / ADAPTER_CARD_NAME).read_bytes())
    return len(exported)
