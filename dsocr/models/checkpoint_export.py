"""Write a model as a checkpoint in upstream's layout or in transformers' native one.

Upstream's layout is the released checkpoints' own: their tensor names, one tensor per expert, their config.json. v1's
CLIP has two tensors that the model never uses and the native classes do not know; they are copied from the base.
"""

import logging
import shutil
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from dsocr.common.files import let_others_read, load_json, write_json
from dsocr.common.run_files import ADAPTER_CARD_NAME, ADAPTER_CONFIG_NAME, PROCESSOR_NAME
from dsocr.models.config import model_version


logger = logging.getLogger(__name__)

LAYOUTS = ("upstream", "native")
SHARD_SIZE = "4GB"
_CLIP = "model.vision_model.embeddings"
# Never copied: the export writes new weights, and the run's own files belong to the run.
_SKIPPED_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".index.json", ".md", ".png", ".jpg", ".log")
_SKIPPED_NAMES = ("config.json", ADAPTER_CONFIG_NAME, ADAPTER_CARD_NAME, PROCESSOR_NAME)


def _find_in_checkpoint(folder: Path, name: str) -> torch.Tensor | None:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():
                return file.get_tensor(name)
    return None


def unused_tensors(model: PreTrainedModel, base: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of upstream's v1 that the native model drops, from the base checkpoint if it has them.

    Args:
        model: The native model.
        base: Local folder of the base checkpoint.

    Returns:
        Tensors by upstream's name: the CLIP patch embedding `[hidden, 3, patch, patch]`, and its position ids
        `[1, positions]` only where the base has them: the released file has none, and vLLM refuses a file that has. None
        for v2.
    """
    if model_version(model.config) == "v2":
        return {}
    clip = model.config.vision_config.encoder_config
    patch = _find_in_checkpoint(Path(base), f"{_CLIP}.patch_embedding.weight")
    if patch is None:
        # No forward uses it: CLIP gets SAM's features instead of pixels.
        logger.warning(
            "%s.patch_embedding.weight is not in %s; the model never reads it, so zeros are written", _CLIP, base
        )
        patch = torch.zeros(clip.hidden_size, 3, clip.patch_size, clip.patch_size)
    found = {f"{_CLIP}.patch_embedding.weight": patch}
    positions = _find_in_checkpoint(Path(base), f"{_CLIP}.position_ids")
    return found if positions is None else found | {f"{_CLIP}.position_ids": positions}


def upstream_state_dict(model: PreTrainedModel, base: str | Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors of a model under upstream's names, one per expert.

    Args:
        model: The native model.
        base: Local folder of the base checkpoint.
        dtype: Type of the floating-point tensors.
    """
    tensors = revert_weight_conversion(model, dict(model.state_dict())) | unused_tensors(model, base)
    return {name: _own_copy(tensor, dtype) for name, tensor in tensors.items()}


def _own_copy(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    tensor = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
    # An expert is a view into its stack, and safetensors refuses to save a view: copy it.
    return tensor.clone() if tensor.untyped_storage().nbytes() != tensor.nbytes else tensor


def copy_small_files(base: str | Path, folder: str | Path) -> list[str]:
    """Copy tokenizer, generation config and other small files from a base checkpoint; returns their names.

    Upstream's code files (`*.py`) are copied but never executed: its config.json refers to them.
    """
    copied = []
    for path in sorted(Path(base).iterdir()):
        if path.is_file() and not path.name.endswith(_SKIPPED_SUFFIXES) and path.name not in _SKIPPED_NAMES:
            shutil.copyfile(path, Path(folder) / path.name)
            copied.append(path.name)
    return copied


def choose_layout(base: str | Path) -> str:
    """Layout of a base checkpoint: `"upstream"` or `"native"`."""
    return "upstream" if load_json(Path(base) / "config.json").get("model_type") == "deepseek_vl_v2" else "native"


def upload_checkpoint(folder: str | Path, repository: str) -> None:
    """Upload a folder to the Hub as a private repository `user/name`."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, private=True, exist_ok=True)
    api.upload_folder(repo_id=repository, folder_path=folder)


def write_checkpoint(
    model: PreTrainedModel, folder: str | Path, base: str | Path, *, layout: str, dtype: torch.dtype
) -> Path:
    """Write a full checkpoint, as safetensors shards of at most 4 GB.

    Args:
        model: The native model, not quantised.
        folder: Output folder; it is created.
        base: Local folder of the base checkpoint; its config.json and small files are copied.
        layout: `"upstream"` (names, shapes and config keys of the released checkpoint) or `"native"`.
        dtype: Type of the weights.

    Returns:
        The folder.

    Raises:
        ValueError: for an unknown layout, or for `"upstream"` when the base is in the native layout and so has no
            upstream config.json to copy.
    """
    folder, base = Path(folder), Path(base)
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not one of {', '.join(LAYOUTS)}.")
    raw = load_json(base / "config.json")
    if layout == "upstream" and choose_layout(base) != "upstream":
        raise ValueError(
            f"{base} is in the native layout (model_type {raw.get('model_type')!r}), so upstream's config.json is not "
            "there to carry over. Give upstream's checkpoint as the base, or write --layout native."
        )
    folder.mkdir(parents=True, exist_ok=True)
    copied = copy_small_files(base, folder)
    if layout == "native":
        model.to(dtype).save_pretrained(folder, max_shard_size=SHARD_SIZE)
    else:
        tensors = upstream_state_dict(model, base, dtype)
        save_torch_state_dict(tensors, folder, max_shard_size=SHARD_SIZE, metadata={"format": "pt"})
        raw["torch_dtype"] = str(dtype).removeprefix("torch.")
        write_json(folder / "config.json", raw)
    let_others_read(folder)
    logger.info("wrote %s in the %s layout, with %s", folder, layout, ", ".join(copied) or "no further files")
    return folder
