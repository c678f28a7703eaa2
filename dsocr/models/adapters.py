"""Save an adapter with the identity of its base model, and load adapters strictly."""

import hashlib
import logging
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from torch import nn

from dsocr.common.errors import blamed_on
from dsocr.common.files import load_json, write_json
from dsocr.common.run_files import ADAPTER_CARD_NAME, ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from dsocr.models.adapter_targets import prepare_adapter
from dsocr.models.freezing import bare_model


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterIdentity:
    """Identity of an adapter's base model and processor, stored beside the base's fingerprint.

    Attributes:
        base_model_name_or_path: Hub id or folder of the base.
        revision: Commit, branch or tag of a Hub id.
        processor: Version, image mode, layout and prompt, from `OcrProcessor.to_dict`.
    """

    base_model_name_or_path: str
    revision: str | None
    processor: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All fields in one flat dictionary, for `dsocr_adapter.json` and `ocr_results.json`."""
        names = {"base_model_name_or_path": self.base_model_name_or_path, "revision": self.revision}
        return names | self.processor


def base_fingerprint(model: nn.Module) -> str:
    """SHA-256 over small, never quantised tensors of the base (routers, norms, separators), rounded to bf16.

    Two checkpoints of one architecture (v1 and Unlimited-OCR, say) have the same names and shapes, so only the weights
    can reveal the wrong base. The value is the same for an fp32, a bf16 and a 4-bit copy.
    """
    base = bare_model(model)
    digest = hashlib.sha256()
    for name, parameter in sorted(base.named_parameters()):
        small = name.endswith(("mlp.gate.weight", "layernorm.weight", "view_separator", "language_model.norm.weight"))
        if small and not parameter.is_meta:
            digest.update(name.encode())
            digest.update(parameter.detach().to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def adapter_fingerprint(folder: str | Path) -> str:
    """SHA-256 of a saved adapter's weights; it changes when another run overwrites the folder."""
    with (Path(folder) / ADAPTER_WEIGHTS_NAME).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_adapter_card(
    folder: str | Path, model: nn.Module, identity: AdapterIdentity | None = None, **further: Any
) -> Path:
    """Write `dsocr_adapter.json` beside an adapter: fingerprint, name and revision of its base, image mode and prompt,
    so nobody has to guess them when loading; `further` entries are added."""
    card = {"base_fingerprint": base_fingerprint(model), **(identity.to_dict() if identity else {}), **further}
    return write_json(Path(folder) / ADAPTER_CARD_NAME, card)


def load_adapter_card(folder: str | Path) -> dict:
    """Load `dsocr_adapter.json`; `{}` when another tool saved the adapter."""
    return load_json(Path(folder) / ADAPTER_CARD_NAME, {})


def find_base(folder: str | Path) -> tuple[str, str | None]:
    """Name and revision (`None` for a local folder) of an adapter's base model.

    Raises:
        ValueError: when the adapter names no base.
    """
    folder = Path(folder)
    card, saved = load_adapter_card(folder), load_json(folder / ADAPTER_CONFIG_NAME, {})
    base = card.get("base_model_name_or_path") or saved.get("base_model_name_or_path")
    if not base or not isinstance(base, str):
        raise ValueError(f"{folder} does not say what its base model is; give --model_name_or_path.")
    # The demonstration saves its base beside the adapter: look there, so that the run folder can be moved.
    beside = folder / Path(base).name
    base = str(beside) if not Path(base).is_dir() and beside.is_dir() else base
    return base, None if Path(base).is_dir() else card.get("revision") or saved.get("revision")


def _stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{folder} has no adapter_config.json; give the folder that the training run wrote.")
    if not (folder / ADAPTER_WEIGHTS_NAME).is_file():
        raise FileNotFoundError(
            f"{folder} has no {ADAPTER_WEIGHTS_NAME}; adapters in pickle files (.bin) are not loaded."
        )
    try:
        with safe_open(folder / ADAPTER_WEIGHTS_NAME, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{folder / ADAPTER_WEIGHTS_NAME} is damaged or half-written: {error}") from error


def _load_config(folder: Path, stored: dict[str, torch.Tensor]) -> LoraConfig:
    """The adapter's configuration, with the stored tensors' own modules in place of a regular expression.

    A folder from outside may hold an expression that runs for hours, or a rank that fills the memory.
    """
    config = PeftConfig.from_pretrained(folder)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{folder / ADAPTER_CONFIG_NAME}: peft_type {config.peft_type!r} is not LORA.")
    largest = max((max(tensor.shape, default=0) for tensor in stored.values()), default=0)
    for rank in (config.r, *config.rank_pattern.values()):
        if not 1 <= rank <= largest:
            raise ValueError(
                f"{folder / ADAPTER_CONFIG_NAME}: rank {rank}, where the largest side of a tensor is {largest}."
            )
    patterns = [key for key in (*config.rank_pattern, *config.alpha_pattern) if not re.fullmatch(r"[\w.]+", key)]
    if patterns:
        raise ValueError(
            f"{folder / ADAPTER_CONFIG_NAME}: {patterns[0]!r:.80} is an expression where a module's name belongs."
        )
    # The stored tensors name the modules, so nothing has to be left out of an expression's matches.
    config.exclude_modules = None
    if isinstance(config.target_modules, str):
        names = {key.split(".lora_")[0] for key in stored if ".lora_" in key and ".experts" not in key}
        config.target_modules = {name.removeprefix("base_model.model.") for name in names}
    return config


def _check_every_tensor(model: PeftModel, stored: dict[str, torch.Tensor], adapter_name: str, folder: Path) -> None:
    loaded = get_peft_model_state_dict(model, adapter_name=adapter_name)
    missing, unexpected = sorted(loaded.keys() - stored.keys()), sorted(stored.keys() - loaded.keys())
    if missing or unexpected:
        raise ValueError(
            f"{folder}: the adapter does not fit this base model: {len(missing)} of its tensors missing "
            f"({', '.join(missing[:3])}), {len(unexpected)} unexpected ({', '.join(unexpected[:3])})."
        )
    differing = [
        key
        for key, tensor in stored.items()
        if not torch.equal(loaded[key].detach().cpu(), tensor.to(loaded[key].dtype))
    ]
    if differing:
        raise ValueError(
            f"{folder}: {len(differing)} of {len(stored)} adapter tensors did not reach the model "
            f"({', '.join(differing[:3])}). The checkpoint rules of transformers may have changed; "
            "see dsocr/models/checkpoint_rules.py."
        )


def check_loaded_adapter(model: PeftModel, path: str | Path) -> int:
    """Check that a loaded adapter equals the saved one, tensor for tensor; returns the number of tensors.

    Raises:
        FileNotFoundError: when a file of the adapter is missing.
        ValueError: when a tensor is missing, unexpected or different.
    """
    stored = _stored_tensors(Path(path))
    _check_every_tensor(model, stored, "default", Path(path))
    return len(stored)


def load_adapter(
    model: nn.Module,
    path: str | Path,
    *,
    adapter_name: str = "default",
    is_trainable: bool = False,
) -> PeftModel:
    """Put a saved adapter on a base model, and check that every tensor arrived.

    Args:
        model: The bare base model, or a `PeftModel` to add one more adapter to.
        path: Folder with `adapter_config.json` and `adapter_model.safetensors`.
        adapter_name: Name inside the `PeftModel`.
        is_trainable: Whether the adapter's parameters require a gradient.

    Returns:
        The `PeftModel`.

    Raises:
        FileNotFoundError: when a file of the adapter is missing.
        ValueError: when a tensor is missing, unexpected, of another shape or did not arrive, or when the adapter was
            trained on another base.
    """
    folder = Path(path)
    stored = _stored_tensors(folder)
    card = load_adapter_card(folder)
    if "base_fingerprint" in card and card["base_fingerprint"] != base_fingerprint(model):
        raise ValueError(
            f"{folder} was trained on another base model: {card.get('base_model_name_or_path')!r}, revision "
            f"{card.get('revision')!r}. Load that one."
        )
    try:
        with warnings.catch_warnings(), blamed_on(folder):
            # Hide PEFT's warning: `_check_every_tensor` raises an error for the same fault.
            warnings.filterwarnings("ignore", message="Found missing adapter keys")
            if isinstance(model, PeftModel):
                _load_config(folder, stored)
                model.load_adapter(folder, adapter_name=adapter_name, is_trainable=is_trainable)
                model.set_adapter(adapter_name)
            else:
                config = prepare_adapter(model, _load_config(folder, stored))
                model = PeftModel.from_pretrained(
                    model, folder, adapter_name=adapter_name, is_trainable=is_trainable, config=config
                )
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{folder}: the adapter does not fit this base model: {error}") from error
    with blamed_on(folder):
        _check_every_tensor(model, stored, adapter_name, folder)
    logger.info("loaded adapter %s: %d tensors, every one checked", folder, len(stored))
    return model


def verify_saved_adapter(model: nn.Module, path: str | Path) -> int:
    """Reload a just-saved adapter strictly beside the trained one, and compare all their tensors.

    Args:
        model: The trained `PeftModel`. A model without an adapter (full fine-tuning) is left alone.
        path: Folder of the saved adapter.

    Returns:
        The number of tensors, 0 without an adapter.

    Raises:
        ValueError: when a reloaded tensor differs from the trained one.
    """
    if not isinstance(model, PeftModel):
        return 0
    active = model.active_adapter
    trained = get_peft_model_state_dict(model, adapter_name=active)
    load_adapter(model, path, adapter_name="reloaded")
    try:
        reloaded = get_peft_model_state_dict(model, adapter_name="reloaded")
        differing = [key for key in trained if not torch.equal(trained[key], reloaded[key].to(trained[key].device))]
    finally:
        model.set_adapter(active)
        model.delete_adapter("reloaded")
    if differing:
        raise ValueError(
            f"{path}: {len(differing)} tensors differ after saving and loading ({', '.join(differing[:3])})."
        )
    return len(trained)
