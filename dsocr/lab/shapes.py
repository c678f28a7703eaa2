"""Models to measure, by size: the tiny one, released widths with few layers, and the released shapes."""

from transformers import PreTrainedConfig

from dsocr.lab.tiny import PATCH_SIZE, SIZE_DIVISOR, build_tiny_model
from dsocr.models.config import model_version, released_config
from dsocr.samples.geometry import ImageGeometry, image_geometry


SIZES = ("tiny", "mid", "full")
MID_LAYERS = 4


def benchmark_config(size: str, version: str) -> PreTrainedConfig:
    """The config of a model to measure.

    Args:
        size: `tiny` (this project's), `mid` (released widths, four layers in every stack) or `full` (as released).
        version: `"v1"` or `"v2"`.

    Raises:
        ValueError: for another size.
    """
    if size not in SIZES:
        raise ValueError(f"size={size!r} is not one of {', '.join(SIZES)}.")
    if size == "tiny":
        return build_tiny_model(version)[0].config
    config = released_config(version)
    if size == "mid":
        config.text_config.num_hidden_layers = MID_LAYERS
        for name in ("layer_types", "mlp_layer_types"):
            kinds = getattr(config.text_config, name, None)
            if kinds is not None:
                setattr(config.text_config, name, kinds[:MID_LAYERS])
        encoder = config.vision_config.encoder_config
        encoder.num_hidden_layers = MID_LAYERS
        if getattr(encoder, "layer_types", None) is not None:
            encoder.layer_types = encoder.layer_types[:MID_LAYERS]
        sam = config.vision_config.sam_config
        sam.num_hidden_layers = MID_LAYERS
        # One global layer in three, as released.
        sam.global_attn_indexes = [2]
    return config


def benchmark_geometry(size: str, config: PreTrainedConfig, mode: str, layout: str = "original") -> ImageGeometry:
    """The image geometry of a model to measure."""
    sizes = {"size_divisor": SIZE_DIVISOR, "patch_size": PATCH_SIZE} if size == "tiny" else {}
    return image_geometry(model_version(config), mode, layout=layout, **sizes)


def image_with_tiles(geometry: ImageGeometry, tiles: int) -> tuple[int, int]:
    """Width and height of an image that gets so many tiles in one column.

    Raises:
        ValueError: when the mode gives no image so many tiles.
    """
    if tiles == 0:
        side = geometry.tile_size or geometry.base_size
        return side, side
    size = (geometry.tile_size, tiles * geometry.tile_size)
    if not geometry.tile_size or geometry.count_tiles(*size) != tiles:
        raise ValueError(f"tiles={tiles}: image mode {geometry.mode} has {geometry.min_tiles} to {geometry.max_tiles}.")
    return size
