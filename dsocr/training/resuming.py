"""Compare a stopped run with the run that goes on from its checkpoint."""

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn

from dsocr.common.files import load_json
from dsocr.common.run_files import ADAPTER_CONFIG_NAME
from dsocr.models.adapters import AdapterIdentity, base_fingerprint, load_adapter_card


# Settings of the card that the processor does not take from the base: name in the card, flag.
_CARD_FLAGS = {"image_mode": "--image_mode", "image_layout": "--image_layout", "prompt": "--prompt"}
_LORA_FLAGS = {
    "r": "--lora_r",
    "lora_alpha": "--lora_alpha",
    "lora_dropout": "--lora_dropout",
    "target_modules": "--lora_target_modules",
    "target_parameters": "--lora_target_parameters",
    "use_rslora": "--use_rslora",
    "use_dora": "--use_dora",
}
TRAINING_ROWS = "training_rows"


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, list | set | tuple) else value


def check_same_run(
    checkpoint: str | Path, model: nn.Module, identity: AdapterIdentity | None, training_rows: str
) -> None:
    """Refuse a checkpoint of a run with another base, other image settings, other training rows or another adapter.

    Trainer restores optimizer and step without comparing any of these, and would go on as if nothing had changed.

    Args:
        checkpoint: The checkpoint folder.
        model: The model of the new run, with its adapter.
        identity: Its base and processor; `None` compares base weights, rows and adapter alone.
        training_rows: Fingerprint of its training set.

    Raises:
        ValueError: naming every difference and its flag.
    """
    card = load_adapter_card(checkpoint)
    differences = []
    if card.get("base_fingerprint") not in (None, base_fingerprint(model)):
        differences.append("the weights of the base model (--model_name_or_path)")
    if card.get(TRAINING_ROWS) not in (None, training_rows):
        differences.append("the training rows (--dataset_name, or the images and texts in it)")
    current = identity.processor if identity else {}
    differences += [
        f"{name} (was {card[name]!r}, {flag} is now {current[name]!r})"
        for name, flag in _CARD_FLAGS.items()
        if name in card and name in current and card[name] != current[name]
    ]
    if isinstance(model, PeftModel):
        saved, config = load_json(Path(checkpoint) / ADAPTER_CONFIG_NAME, {}), model.peft_config["default"].to_dict()
        differences += [
            f"{name} (was {_plain(saved[name])}, {flag} is now {_plain(config.get(name))})"
            for name, flag in _LORA_FLAGS.items()
            if name in saved and _plain(saved[name]) != _plain(config.get(name))
        ]
    if differences:
        raise ValueError(
            f"--resume_from_checkpoint {checkpoint}: that run had other settings: {'; '.join(differences)}. Give the "
            "stopped run's settings, or start afresh in a new --output_dir."
        )
