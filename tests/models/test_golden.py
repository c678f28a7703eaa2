"""The native models against outputs of the original code."""

import pytest
import torch
from helpers.golden import load_case, load_golden_model


CASES = [
    ("v1", "a_global_only"),
    ("v1", "b_gundam_2x1"),
    ("v1", "c_batch2_mixed_rightpad"),
    ("v1", "f_text_only"),
    ("v2", "a_global768"),
]


@pytest.fixture(scope="module")
def models():
    return {version: load_golden_model(version) for version in ("v1", "v2")}


@pytest.mark.parametrize(("version", "name"), CASES)
def test_outputs_are_those_of_the_original_code(models, version, name):
    inputs, expected = load_case(version, name)
    with torch.no_grad():
        outputs = models[version](**inputs)
    seen = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    assert (outputs.logits - expected["logits"])[seen].abs().max() < 1e-4
    if "loss" in expected:
        assert abs(outputs.loss - expected["loss"]) < 1e-5
    for index, features in enumerate(outputs.image_hidden_states or ()):
        assert (features - expected[f"image_features.{index}"]).abs().max() < 1e-4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_stored_greedy_generation(attention):
    model = load_golden_model("v1", attn_implementation=attention)
    inputs, _ = load_case("v1", "b_gundam_2x1")
    _, expected = load_case("v1", "h_generate_b_gundam_2x1")
    inputs |= {"input_ids": expected["prompt"], "attention_mask": expected["attention_mask"]}
    del inputs["labels"]
    ids = model.generate(**inputs, max_new_tokens=40, do_sample=False, suppress_tokens=[1])
    assert ids.tolist() == expected["generated"].tolist()


def test_long_generation_with_cache_equals_the_one_without(models):
    """Unlimited-OCR's default window of 128 tokens is invisible in every shorter generation."""
    inputs, _ = load_case("v1", "a_global_only")
    del inputs["labels"]
    # 290 is the image token: without a cache a generated one would ask for one more image feature.
    options = {"max_new_tokens": 180, "min_new_tokens": 180, "do_sample": False, "suppress_tokens": [290]}
    cached = models["v1"].generate(**inputs, **options, use_cache=True)
    assert torch.equal(cached, models["v1"].generate(**inputs, **options, use_cache=False))


def test_the_default_window_would_be_noticed():
    """Take the cure away: with Unlimited-OCR's layer types the same generation differs."""
    from helpers.golden import FOLDER, golden_config, load_with_config

    config = golden_config("v1")
    config.text_config.layer_types = ["reference_sliding_attention"] * config.text_config.num_hidden_layers
    windowed = load_with_config(FOLDER / "v1", config)
    inputs, _ = load_case("v1", "a_global_only")
    del inputs["labels"]
    options = {"max_new_tokens": 180, "min_new_tokens": 180, "do_sample": False, "suppress_tokens": [290]}
    full = load_golden_model("v1").generate(**inputs, **options)
    assert not torch.equal(windowed.generate(**inputs, **options), full)


def test_v2_generation_with_cache_equals_the_one_without(models):
    inputs, _ = load_case("v2", "a_global768")
    del inputs["labels"]
    options = {"max_new_tokens": 140, "min_new_tokens": 140, "do_sample": False, "suppress_tokens": [290]}
    cached = models["v2"].generate(**inputs, **options, use_cache=True)
    assert torch.equal(cached, models["v2"].generate(**inputs, **options, use_cache=False))


def test_saving_writes_upstreams_names(models, tmp_path):
    """Every name and shape of the original checkpoint but the two tensors that the native model does not have."""
    from helpers.golden import FOLDER
    from safetensors import safe_open

    models["v1"].save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        written = {name: str(tuple(file.get_slice(name).get_shape())) for name in file.keys()}
    listed = (FOLDER / "v1" / "original_keys.txt").read_text(encoding="utf-8").splitlines()
    original = dict(line.split(" ", 1) for line in listed if line)
    dropped = {name for name in original if name not in written}
    assert {name.split(".")[-2] for name in dropped} == {"patch_embedding", "embeddings"}
    assert written == {name: shape for name, shape in original.items() if name not in dropped}
