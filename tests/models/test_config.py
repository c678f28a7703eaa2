"""Translating config.json."""

import json

import pytest
from helpers.golden import FOLDER

from dsocr.models import model_version, native_config
from dsocr.models.config import released_config


RELEASED_V1 = {
    "architectures": ["DeepseekOCRForCausalLM"],
    "model_type": "deepseek_vl_v2",
    "projector_config": {"input_dim": 2048, "projector_type": "linear"},
    "vision_config": {
        "image_size": 1024,
        "width": {
            "clip-l-14-224": {"heads": 16, "image_size": 224, "layers": 24, "patch_size": 14, "width": 1024},
            "sam_vit_b": {
                "downsample_channels": [512, 1024],
                "global_attn_indexes": [2, 5, 8, 11],
                "heads": 12,
                "layers": 12,
                "width": 768,
            },
        },
    },
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
    "use_mla": False,
    "max_position_embeddings": 8192,
}


def released(version: str) -> dict:
    raw = json.loads(json.dumps(RELEASED_V1))
    if version == "v2":
        raw["architectures"] = ["DeepseekOCR2ForCausalLM"]
        raw["vision_config"]["width"]["qwen2-0-5b"] = {"dim": 896}
        del raw["vision_config"]["width"]["clip-l-14-224"]
    return raw


def test_released_v1_has_full_attention_in_every_layer():
    config = native_config(released("v1"))
    assert config.text_config.layer_types == ["full_attention"] * 12
    assert config.text_config.mlp_layer_types == ["dense"] + ["sparse"] * 11
    assert config.vision_config.encoder_config.intermediate_size == 4096
    assert config.image_token_id == 128815
    assert model_version(config) == "v1"


def test_released_v2_takes_the_encoders_width_for_sams_last_channels():
    config = native_config(released("v2"))
    assert config.vision_config.sam_config.downsample_channels == [512, 896]
    assert config.vision_config.encoder_config.num_key_value_heads == 2
    assert config.vision_config.encoder_config.rope_parameters["rope_theta"] == 1e6
    assert model_version(config) == "v2"


def test_unlimited_ocr_is_written_with_a_hyphen_too():
    raw = released_config("unlimited").to_dict()
    expected = native_config(raw)
    assert native_config({**raw, "model_type": "unlimited-ocr"}).to_dict() == expected.to_dict()
    assert model_version(native_config({**raw, "model_type": "unlimited-ocr"})) == "unlimited"


def test_released_v1_size_counted_on_the_meta_device():
    import torch

    from dsocr.models.loading import find_model_class

    with torch.device("meta"):
        model = find_model_class("unlimited_ocr")(native_config(released("v1")))
    experts = sum(p.numel() for name, p in model.named_parameters() if ".mlp.experts." in name)
    assert round(experts / 1e6, 1) == 2422.2
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 3335.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_mla", True),
        ("norm_topk_prob", True),
        ("scoring_func", "sigmoid"),
        ("rope_scaling", {"type": "yarn", "factor": 40}),
        ("topk_method", "noaux_tc"),
        ("moe_layer_freq", 2),
        ("tie_word_embeddings", True),
    ],
)
def test_what_the_native_model_cannot_express_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        native_config(released("v1") | {field: value})


def test_a_config_silent_about_mla_asks_for_it():
    raw = released("v1")
    del raw["use_mla"]
    with pytest.raises(ValueError, match="use_mla"):
        native_config(raw)


def test_other_models_and_incomplete_configs_are_refused():
    with pytest.raises(ValueError, match="model_type='llama'"):
        native_config({"model_type": "llama"})
    raw = released("v1")
    del raw["moe_intermediate_size"]
    with pytest.raises(ValueError, match="moe_intermediate_size"):
        native_config(raw)


def test_unlimited_ocr_is_left_untouched():
    config = native_config({"model_type": "unlimited_ocr", "language_config": {"num_hidden_layers": 3}})
    assert config.text_config.layer_types == ["reference_sliding_attention"] * 3
    assert config.text_config.sliding_window == 128
    assert model_version(config) == "unlimited"


def test_a_translated_config_survives_saving(tmp_path):
    raw = json.loads((FOLDER / "v1" / "config.json").read_text(encoding="utf-8"))
    config = native_config(raw)
    config.save_pretrained(tmp_path)
    again = native_config(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
    assert again.to_dict() == config.to_dict()
