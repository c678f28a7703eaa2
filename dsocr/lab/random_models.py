"""Models of three sizes with random weights, and batches for them: speed and memory do not depend on the weights' values."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from dsocr.common.files import write_then_rename
from dsocr.lab.tiny import PATCH_SIZE, SIZE_DIVISOR, build_byte_tokenizer, build_tiny_model
from dsocr.models.config import released_config
from dsocr.models.loading import find_model_class
from dsocr.samples.collator import IGNORED
from dsocr.samples.geometry import ImageGeometry
from dsocr.samples.processor import OcrProcessor


SIZES = ("tiny", "mid", "full")
MID_LAYERS = 4
_STANDARD_DEVIATION = 0.02


def sized_config(size: str, version: str) -> PreTrainedConfig:
    """The config of a model to measure.

    Args:
        size: `"tiny"` (this project's own), `"mid"` (the released widths, four layers in every stack) or `"full"` (as
            released).
        version: `"v1"` or `"v2"`.

    Raises:
        ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r} is not one of {', '.join(SIZES)}.")
    if size == "tiny":
        return build_tiny_model(version)[0].config
    config = released_config(version)
    if size == "mid":
        text, encoder, sam = config.text_config, config.vision_config.encoder_config, config.vision_config.sam_config
        for stack in (text, encoder):
            stack.num_hidden_layers = MID_LAYERS
            for name in ("layer_types", "mlp_layer_types"):
                if getattr(stack, name, None) is not None:
                    setattr(stack, name, getattr(stack, name)[:MID_LAYERS])
        sam.num_hidden_layers = MID_LAYERS
        # The released SAM has one global layer in three.
        sam.global_attn_indexes = [2]
    return config


def sized_processor(size: str, version: str, image_mode: str) -> OcrProcessor:
    """The processor of a model to measure: its geometry has that model's image sizes, its tokenizer knows bytes alone."""
    tokenizer = build_byte_tokenizer()
    if size == "tiny":
        return OcrProcessor(tokenizer, version, image_mode, size_divisor=SIZE_DIVISOR, patch_size=PATCH_SIZE)
    return OcrProcessor(tokenizer, version, image_mode)


def image_with_tiles(geometry: ImageGeometry, tiles: int) -> tuple[int, int]:
    """Width and height of an image that is cut into so many tiles, in one column.

    Raises:
        ValueError: the image mode cuts no image into so many tiles.
    """
    if tiles == 0:
        side = geometry.tile_size or geometry.base_size
        return side, side
    size = (geometry.tile_size, tiles * geometry.tile_size)
    if not geometry.tile_size or geometry.count_tiles(*size) != tiles:
        raise ValueError(f"tiles={tiles}: image mode {geometry.mode} has {geometry.min_tiles} to {geometry.max_tiles}.")
    return size


@torch.no_grad()
def build_random_model(config: PreTrainedConfig, dtype: torch.dtype, device: str | torch.device) -> PreTrainedModel:
    """A bare native model with normally distributed weights, made on its device; the seed is fixed."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            model = find_model_class(config.model_type)(config)
    finally:
        torch.set_default_dtype(default)
    generator = torch.Generator(device=device).manual_seed(0)
    for parameter in model.parameters():
        parameter.normal_(std=_STANDARD_DEVIATION, generator=generator)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
            module.bias.zero_()
        elif "norm" in type(module).__name__.lower() and getattr(module, "weight", None) is not None:
            module.weight.fill_(1.0)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
    return model


def write_random_checkpoint(config: PreTrainedConfig, dtype: torch.dtype, folder: str | Path) -> Path:
    """Write a random model as safetensors, unless the folder is there already; returns the folder."""
    folder = Path(folder)
    if not folder.is_dir():
        # Renamed at the end: a folder that an interrupted run left half written would be taken for a checkpoint.
        with write_then_rename(folder) as partial:
            build_random_model(config, dtype, "cpu").save_pretrained(partial, max_shard_size="2GB")
    return folder


@dataclass(frozen=True)
class StepOptions:
    """One step of training or reading.

    Attributes:
        geometry: Image geometry.
        image_size: Width and height of every image, pixels; it decides the number of tiles.
        batch_size: Samples in a step.
        answer_tokens: Length of every answer, eos included.
        dtype: Type of pixels and of autocast; `torch.float32` runs without autocast.
        checkpointing: Whether activations are computed again in the backward pass.
        optim: `"adamw_torch"` or `"paged_adamw_8bit"`.
    """

    geometry: ImageGeometry
    image_size: tuple[int, int]
    batch_size: int = 2
    answer_tokens: int = 200
    dtype: torch.dtype = torch.bfloat16
    checkpointing: bool = False
    optim: str = "adamw_torch"

    def to_dict(self) -> dict[str, Any]:
        """The fields that a results file keeps."""
        return {
            "version": self.geometry.version,
            "image_mode": self.geometry.mode,
            "batch_size": self.batch_size,
            "answer_tokens": self.answer_tokens,
            "dtype": str(self.dtype).removeprefix("torch."),
            "checkpointing": self.checkpointing,
        }


def random_batch(config: PreTrainedConfig, options: StepOptions, device: str | torch.device) -> dict[str, Any]:
    """A training batch of noise images and random answers, in the collator's form; the seed is fixed.

    Returns:
        `input_ids`, `attention_mask`, `labels` `[batch, length]`, `pixel_values` `[batch, 3, base, base]`, and with
        tiles `pixel_values_local` `[tiles, 3, tile, tile]`, `num_local_patches` and (v1) `patches_grid`.
    """
    geometry, batch_size = options.geometry, options.batch_size
    generator = torch.Generator().manual_seed(0)
    columns, rows = geometry.choose_grid(*options.image_size)
    tiles = geometry.count_tiles(*options.image_size)
    text = config.get_text_config()
    images = torch.full((batch_size, geometry.count_tokens(*options.image_size)), config.image_token_id)
    answers = torch.randint(3, text.vocab_size // 2, (batch_size, options.answer_tokens), generator=generator)
    start = torch.full((batch_size, 1), text.bos_token_id)
    ids = torch.cat([start, images, answers], dim=1)
    labels = ids.clone()
    labels[:, : -options.answer_tokens] = IGNORED
    pixels = torch.rand(batch_size, 3, geometry.base_size, geometry.base_size, generator=generator) * 2 - 1
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}
    if tiles:
        side = geometry.tile_size
        batch["pixel_values_local"] = torch.rand(batch_size * tiles, 3, side, side, generator=generator) * 2 - 1
        batch["num_local_patches"] = [tiles] * batch_size
        if geometry.version != "v2":
            batch["patches_grid"] = [[columns, rows]] * batch_size
    return {
        key: value.to(device, options.dtype if value.is_floating_point() else None) if torch.is_tensor(value) else value
        for key, value in batch.items()
    }
