"""Translate upstream's `config.json` into the native config classes of transformers."""

from typing import Any

from transformers import DeepseekOcr2Config, PreTrainedConfig, UnlimitedOcrConfig


NATIVE_CONFIGS = {"unlimited_ocr": UnlimitedOcrConfig, "deepseek_ocr2": DeepseekOcr2Config}
# Stored copies of baidu/Unlimited-OCR write its model type with a hyphen.
NATIVE_NAMES = {"unlimited-ocr": "unlimited_ocr", **{name: name for name in NATIVE_CONFIGS}}

# Constants of upstream's code; its config.json does not carry them (deepencoder.py, deepencoderv2.py).
SAM_OUTPUT_CHANNELS = 256
SAM_MLP_RATIO = 4
CLIP_MLP_RATIO = 4
IMAGE_TOKEN_ID = 128815
PAD_TOKEN_ID = 2
V2_ENCODER = {
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}

_REQUIRED_TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "n_shared_experts",
    "n_routed_experts",
    "num_experts_per_tok",
    "first_k_dense_replace",
)
# Field -> default of upstream's DeepseekV2Config when config.json omits it.
_OPTIONAL_TEXT_FIELDS = {
    "num_key_value_heads": None,
    "max_position_embeddings": 2048,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "greedy",
    "routed_scaling_factor": 1.0,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 1,
}


def _refuse(field: str, value: Any, reason: str):
    raise ValueError(f"config.json: {field}={value!r} cannot be expressed by the native model: {reason}.")


def _check_text(text: dict[str, Any]) -> None:
    missing = [field for field in _REQUIRED_TEXT_FIELDS if field not in text]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}; is this the config of a DeepSeek-OCR checkpoint?")
    # DeepseekV2Config's default for use_mla is True, so a config without the field asks for MLA.
    if text.get("use_mla", True):
        _refuse("use_mla", text.get("use_mla", True), "it has multi-head attention, not multi-head latent attention")
    if text.get("norm_topk_prob", False):
        _refuse("norm_topk_prob", True, "its router does not renormalise the top-k weights")
    if text.get("scoring_func", "softmax") != "softmax":
        _refuse("scoring_func", text["scoring_func"], "its router scores experts by softmax")
    if text.get("rope_scaling") is not None:
        _refuse("rope_scaling", text["rope_scaling"], "upstream's scaled rotary embedding differs from the native one")
    if text.get("topk_method", "greedy") not in ("greedy", "group_limited_greedy"):
        _refuse("topk_method", text["topk_method"], "its router knows greedy and group_limited_greedy")
    if text.get("moe_layer_freq", 1) != 1:
        _refuse("moe_layer_freq", text["moe_layer_freq"], "every layer after the dense ones is a mixture of experts")
    if text.get("tie_word_embeddings", False):
        _refuse("tie_word_embeddings", True, "upstream's checkpoints store lm_head apart")


def _text_config(text: dict[str, Any]) -> dict[str, Any]:
    _check_text(text)
    config = {field: text[field] for field in _REQUIRED_TEXT_FIELDS if field != "first_k_dense_replace"}
    config |= {field: text.get(field, default) for field, default in _OPTIONAL_TEXT_FIELDS.items()}
    # Set no pad_token_id here: nn.Embedding would take it as padding_idx and never train that row.
    dense = text["first_k_dense_replace"]
    config["mlp_layer_types"] = ["dense" if i < dense else "sparse" for i in range(config["num_hidden_layers"])]
    theta = float(text.get("rope_theta", 10_000.0))
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    return config


def _sam_config(width: dict[str, Any], image_size: int, out_channels: int) -> dict[str, Any]:
    return {
        "hidden_size": width["width"],
        "num_hidden_layers": width["layers"],
        "num_attention_heads": width["heads"],
        "global_attn_indexes": list(width["global_attn_indexes"]),
        "mlp_dim": SAM_MLP_RATIO * width["width"],
        "output_channels": SAM_OUTPUT_CHANNELS,
        "downsample_channels": [width["downsample_channels"][0], out_channels],
        "image_size": image_size,
    }


def _v1_config(raw: dict[str, Any], text: dict[str, Any]) -> UnlimitedOcrConfig:
    vision = raw["vision_config"]
    sam, clip = vision["width"]["sam_vit_b"], vision["width"]["clip-l-14-224"]
    if clip["width"] != sam["downsample_channels"][-1]:
        _refuse("vision_config.width", vision["width"], "SAM's last channel count and CLIP's width must be equal")
    # The native class is Unlimited-OCR's. Its default sliding window of 128 tokens changes nothing in training and in
    # short generations but is wrong from generated token 129 on, so set every layer to full attention.
    text_config = _text_config(text)
    text_config["layer_types"] = ["full_attention"] * text_config["num_hidden_layers"]
    return UnlimitedOcrConfig(
        image_token_id=IMAGE_TOKEN_ID,
        text_config=text_config,
        vision_config={
            "sam_config": _sam_config(sam, vision["image_size"], sam["downsample_channels"][-1]),
            "encoder_config": {
                "hidden_size": clip["width"],
                "intermediate_size": CLIP_MLP_RATIO * clip["width"],
                "num_hidden_layers": clip["layers"],
                "num_attention_heads": clip["heads"],
                "image_size": clip["image_size"],
                "patch_size": clip["patch_size"],
            },
        },
        architectures=["UnlimitedOcrForConditionalGeneration"],
    )


def _v2_config(raw: dict[str, Any], text: dict[str, Any]) -> DeepseekOcr2Config:
    vision = raw["vision_config"]
    encoder = {**V2_ENCODER, "hidden_size": vision["width"]["qwen2-0-5b"]["dim"]}
    # Upstream's code ignores config.json here: it builds SAM with the encoder's width as its last channel count.
    sam = _sam_config(vision["width"]["sam_vit_b"], vision["image_size"], encoder["hidden_size"])
    return DeepseekOcr2Config(
        image_token_id=IMAGE_TOKEN_ID,
        text_config=_text_config(text),
        vision_config={"sam_config": sam, "encoder_config": encoder},
        architectures=["DeepseekOcr2ForConditionalGeneration"],
    )


def native_config(raw: dict[str, Any]) -> PreTrainedConfig:
    """Translate the `config.json` of a DeepSeek-OCR checkpoint into a native config.

    Args:
        raw: The parsed `config.json`: upstream's (DeepSeek-OCR v1 and v2, both with `model_type: deepseek_vl_v2`) or a
            native one (Unlimited-OCR, or a checkpoint saved by transformers).

    Returns:
        `UnlimitedOcrConfig` for v1 and Unlimited-OCR, `DeepseekOcr2Config` for v2.

    Raises:
        ValueError: when the config belongs to another model, or sets a field that the native model cannot express
            (`use_mla`, `norm_topk_prob`, `scoring_func`, `rope_scaling`, ...); the message names the field.

    Source: upstream's modeling_deepseekocr.py, modeling_deepseekocr2.py and configuration_deepseek_v2.py.
    """
    model_type = raw.get("model_type")
    if model_type in NATIVE_NAMES:
        model_type = NATIVE_NAMES[model_type]
        return NATIVE_CONFIGS[model_type].from_dict({**raw, "model_type": model_type})
    width = raw.get("vision_config", {}).get("width", {})
    if model_type != "deepseek_vl_v2" or not isinstance(width, dict):
        raise ValueError(
            f"config.json: model_type={model_type!r}, architectures={raw.get('architectures')!r} is not DeepSeek-OCR "
            "(v1 or v2) or Unlimited-OCR."
        )
    # Upstream's language model takes its fields from the top level; language_config repeats them.
    text = {**raw.get("language_config", {}), **raw}
    if raw.get("projector_config", {}).get("projector_type", "linear") != "linear":
        _refuse("projector_config.projector_type", raw["projector_config"]["projector_type"], "it has one linear layer")
    architecture = (raw.get("architectures") or [None])[0]
    if "qwen2-0-5b" in width or architecture == "DeepseekOCR2ForCausalLM":
        return _v2_config(raw, text)
    if "clip-l-14-224" in width or architecture == "DeepseekOCRForCausalLM":
        return _v1_config(raw, text)
    raise ValueError(
        f"config.json: architectures={raw.get('architectures')!r} with vision_config.width keys {sorted(width)} is not "
        "a DeepSeek-OCR model; v1 has clip-l-14-224 there and v2 has qwen2-0-5b."
    )


def model_version(config: PreTrainedConfig) -> str:
    """`"v1"`, `"v2"` or `"unlimited"`; the version decides a model's image geometry.

    Raises:
        ValueError: when the config belongs to another model.
    """
    if config.model_type == "deepseek_ocr2":
        return "v2"
    if config.model_type == "unlimited_ocr":
        full = all(kind == "full_attention" for kind in config.text_config.layer_types)
        return "v1" if full else "unlimited"
    raise ValueError(f"model_type={config.model_type!r} is neither DeepSeek-OCR (v1, v2) nor Unlimited-OCR.")


# Language model of both versions, from upstream's config.json (deepseek-ai/DeepSeek-OCR, DeepSeek-OCR-2).
_TEXT = {
    "vocab_size": 129280,
    "hidden_size": 1280,
    "intermediate_size": 6848,
    "moe_intermediate_size": 896,
    "num_hidden_layers": 12,
    "num_attention_heads": 10,
    "num_key_value_heads": 10,
    "n_shared_experts": 2,
    "n_routed_experts": 64,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 8192,
    "use_mla": False,
}
_SAM = {
    "width": 768,
    "layers": 12,
    "heads": 12,
    "global_attn_indexes": [2, 5, 8, 11],
    "downsample_channels": [512, 1024],
}
_WIDTHS = {
    "v1": {
        "sam_vit_b": _SAM,
        "clip-l-14-224": {"width": 1024, "layers": 24, "heads": 16, "image_size": 224, "patch_size": 14},
    },
    "v2": {"sam_vit_b": _SAM, "qwen2-0-5b": {"dim": 896}},
}
_ARCHITECTURES = {"v1": "DeepseekOCRForCausalLM", "v2": "DeepseekOCR2ForCausalLM"}
# Hub ids -> version.
RELEASED = {
    "deepseek-ai/DeepSeek-OCR": "v1",
    "deepseek-ai/DeepSeek-OCR-2": "v2",
    "deepseek-community/DeepSeek-OCR-2": "v2",
    "baidu/Unlimited-OCR": "unlimited",
}


def released_config(version: str) -> PreTrainedConfig:
    """The native config of a released checkpoint.

    Args:
        version: `"v1"`, `"v2"` or `"unlimited"` (v1's shapes with a sliding reference window).

    Raises:
        ValueError: for another version.
    """
    if version not in ("v1", "v2", "unlimited"):
        raise ValueError(f"version={version!r} is not one of v1, v2, unlimited.")
    shape = "v2" if version == "v2" else "v1"
    raw = {
        "model_type": "deepseek_vl_v2",
        "architectures": [_ARCHITECTURES[shape]],
        "vision_config": {"image_size": 1024, "width": _WIDTHS[shape]},
        **_TEXT,
    }
    config = native_config(raw)
    if version == "unlimited":
        config.text_config.layer_types = UnlimitedOcrConfig().text_config.layer_types
    return config
