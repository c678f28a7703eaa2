"""The golden cases: models, inputs and the original code's outputs."""

import json
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from dsocr.models import load_model, native_config


FOLDER = Path(__file__).parent.parent / "golden"
_PIXELS = json.loads((FOLDER / "pixels.json").read_text(encoding="utf-8"))
_FIRST_UNIFORM_77 = 0.29188


def golden_config(version: str):
    """The translated config, with the constants of the original code that are smaller in the golden models."""
    config = native_config(json.loads((FOLDER / version / "config.json").read_text(encoding="utf-8")))
    config.image_token_id = 290
    config.vision_config.sam_config.output_channels = 24
    if version == "v2":
        encoder = config.vision_config.encoder_config
        sizes = json.loads((FOLDER / "v2" / "encoder.json").read_text(encoding="utf-8"))
        config.vision_config.encoder_config = type(encoder)(**{**encoder.to_dict(), "layer_types": None, **sizes})
    return config


def load_with_config(folder: Path, config, *, dtype: str = "float32", **options):
    """Load upstream's layout with constants that upstream's code fixes and its config.json does not carry."""
    with patch("dsocr.models.loading.native_config", return_value=config):
        return load_model(str(folder), dtype=dtype, **options)


def load_golden_model(version: str, **options):
    return load_with_config(FOLDER / version, golden_config(version), **options)


def _draw(name: str, key: str) -> torch.Tensor:
    seed, offset, shape = _PIXELS[name][key]
    generator = torch.Generator().manual_seed(seed)
    count = torch.Size(shape).numel()
    return (torch.rand(offset + count, generator=generator)[offset:] * 2 - 1).view(shape)


def check_generator() -> None:
    first = torch.rand(1, generator=torch.Generator().manual_seed(77)).item()
    assert abs(first - _FIRST_UNIFORM_77) < 1e-4, "torch's CPU generator changed; the golden images cannot be drawn"


def load_case(version: str, name: str) -> tuple[dict, dict]:
    """`(inputs of the native model, outputs of the original code)`."""
    check_generator()
    stored = load_file(FOLDER / version / f"{name}.safetensors")
    inputs = {key: stored[key] for key in ("input_ids", "attention_mask", "labels") if key in stored}
    if name == "c_batch2_mixed_rightpad":
        views = [_draw("b_gundam_2x1", "pixel_values"), _draw("a_global_only", "pixel_values")]
        inputs["pixel_values"] = torch.cat(views)
        inputs["pixel_values_local"] = _draw("b_gundam_2x1", "pixel_values_local")
    elif name in _PIXELS:
        inputs |= {key: _draw(name, key) for key in _PIXELS[name]}
    if "pixel_values_local" in inputs:
        grids = stored["images_spatial_crop"].tolist()
        inputs["num_local_patches"] = [c * r if (c, r) != (1, 1) else 0 for c, r in grids]
        if version == "v1":
            inputs["patches_grid"] = grids
    return inputs, stored
