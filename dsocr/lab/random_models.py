"""Models of any shape with random weights, and batches for them: speed and memory do not depend on what weights say."""

from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from dsocr.models.loading import find_model_class
from dsocr.samples.collator import IGNORED
from dsocr.samples.geometry import ImageGeometry


_STANDARD_DEVIATION = 0.02


@torch.no_grad()
def build_random_model(
    config: PreTrainedConfig, *, dtype: torch.dtype = torch.bfloat16, device: str | torch.device = "cpu", seed: int = 0
) -> PreTrainedModel:
    """A model with normally distributed weights, made where it is to live.

    Args:
        config: Native config.
        dtype: Type of the weights.
        device: Their device.
        seed: Seed of the weights.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device), no_init_weights():
            model = find_model_class(config.model_type)(config)
    finally:
        torch.set_default_dtype(default)
    generator = torch.Generator(device=device).manual_seed(seed)
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


def write_random_checkpoint(config: PreTrainedConfig, folder: str | Path, **options) -> Path:
    """Write a random model as safetensors, unless it is there; returns the folder."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        build_random_model(config, **options).save_pretrained(folder, max_shard_size="2GB")
    return folder


def random_batch(
    config: PreTrainedConfig,
    geometry: ImageGeometry,
    *,
    size: tuple[int, int],
    batch_size: int,
    answer_tokens: int,
    dtype: torch.dtype,
    device: str | torch.device,
    seed: int = 0,
) -> dict:
    """A training batch of noise images and random answers, as the collator would make it.

    Args:
        config: Native config.
        geometry: Image geometry.
        size: Width and height of every image, pixels; it decides the tiles.
        batch_size: Number of samples.
        answer_tokens: Length of every answer, eos included.
        dtype: Type of the pixels.
        device: Device of all tensors.
        seed: Seed of images and answers.

    Returns:
        `input_ids`, `attention_mask`, `labels` `[batch, length]`, `pixel_values` `[batch, 3, base, base]`, and with
        tiles `pixel_values_local` `[tiles, 3, tile, tile]`, `num_local_patches` and (v1) `patches_grid`.
    """
    generator = torch.Generator().manual_seed(seed)
    columns, rows = geometry.choose_grid(*size)
    tiles = geometry.count_tiles(*size)
    text = config.get_text_config()
    images = torch.full((batch_size, geometry.count_tokens(*size)), config.image_token_id)
    answers = torch.randint(3, text.vocab_size // 2, (batch_size, answer_tokens), generator=generator)
    start = torch.full((batch_size, 1), text.bos_token_id)
    ids = torch.cat([start, images, answers], dim=1)
    labels = ids.clone()
    labels[:, :-answer_tokens] = IGNORED
    pixels = torch.rand(batch_size, 3, geometry.base_size, geometry.base_size, generator=generator) * 2 - 1
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pixels}
    if tiles:
        side = geometry.tile_size
        batch["pixel_values_local"] = torch.rand(batch_size * tiles, 3, side, side, generator=generator) * 2 - 1
        batch["num_local_patches"] = [tiles] * batch_size
        if geometry.version != "v2":
            batch["patches_grid"] = [[columns, rows]] * batch_size
    return {
        key: value.to(device, dtype if value.is_floating_point() else None) if torch.is_tensor(value) else value
        for key, value in batch.items()
    }
