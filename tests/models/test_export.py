"""Merging, and what others will read: checkpoints and adapters in upstream's names."""

import ast
import json
import os

import pytest
import torch
from helpers.golden import FOLDER, load_golden_model, load_with_config
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from dsocr.lab.packing import quantize_model
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import load_model, prepare_adapter
from dsocr.models.adapter_export import export_adapter, upstream_module_name
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.models.adapters import save_adapter_card
from dsocr.models.checkpoint_export import upstream_state_dict, write_checkpoint
from dsocr.models.merging import MergeError, merge_adapter, probe_logits, verify_written


VERSIONS = ["v1", "v2"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PROBE = {"input_ids": torch.randint(5, 200, (1, 24), generator=torch.Generator().manual_seed(0))}


def save_adapter(folder, model, **options):
    config = LoraConfig(r=4, lora_alpha=8, **{"target_modules": LANGUAGE_MODEL_TARGETS, **options})
    adapted = get_peft_model(model, prepare_adapter(model, config))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    adapted.save_pretrained(folder)
    save_adapter_card(folder, adapted)
    return adapted


def read_checkpoint(folder):
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_merged_checkpoint_has_exactly_upstreams_names_shapes_and_config(tmp_path, version):
    save_adapter(tmp_path / "adapter", load_golden_model(version), target_parameters=EXPERTS)
    merged = merge_adapter(load_golden_model(version), tmp_path / "adapter", PROBE)
    folder = write_checkpoint(merged, tmp_path / "out", FOLDER / version, layout="upstream", dtype=torch.float32)
    written = read_checkpoint(folder)

    original = load_file(FOLDER / version / "model.safetensors")
    expected = {name: tuple(tensor.shape) for name, tensor in original.items()}
    if version == "v1":
        listed = (FOLDER / version / "original_keys.txt").read_text(encoding="utf-8").splitlines()
        pairs = (line.split(" ", 1) for line in listed)
        assert expected == {name: tuple(ast.literal_eval(shape)) for name, shape in pairs}
    assert {name: tuple(tensor.shape) for name, tensor in written.items()} == expected
    assert {name: tensor.dtype for name, tensor in written.items()} == {n: t.dtype for n, t in original.items()}
    changed = {name for name in written if not torch.equal(written[name], original[name])}
    assert changed and all(name.startswith("model.layers.") for name in changed)
    experts = {name.rsplit(".", 2)[1] for name in changed if ".experts." in name}
    assert experts == {"gate_proj", "up_proj", "down_proj"}
    raw, carried = (json.loads((f / "config.json").read_text(encoding="utf-8")) for f in (FOLDER / version, folder))
    assert carried.keys() == raw.keys() | {"torch_dtype"}
    assert all(carried[key] == raw[key] for key in raw if key != "torch_dtype")

    again = load_with_config(folder, merged.config)
    assert torch.equal(probe_logits(again, PROBE), probe_logits(merged, PROBE))


def test_the_two_tensors_that_the_native_model_drops_come_from_the_base(tmp_path, caplog):
    model = load_golden_model("v1")
    original = load_file(FOLDER / "v1" / "model.safetensors")
    written = upstream_state_dict(model, FOLDER / "v1", torch.float32)
    for name in ("patch_embedding.weight", "position_ids"):
        name = f"model.vision_model.embeddings.{name}"
        assert torch.equal(written[name], original[name])
    # A base without the patch embedding gets one of the right shape, and it is said. The released file has no position ids,
    # and vLLM refuses a file that has.
    kept = {name: tensor for name, tensor in original.items() if "embeddings.p" not in name}
    save_file(kept, tmp_path / "model.safetensors")
    again = upstream_state_dict(model, tmp_path, torch.float32)
    positions = "model.vision_model.embeddings.position_ids"
    assert written.keys() - again.keys() == {positions}
    assert again["model.vision_model.embeddings.patch_embedding.weight"].abs().sum() == 0
    assert "the model never reads it" in caplog.text


@pytest.mark.skipif(os.name == "nt", reason="Windows has no file modes")
def test_another_account_can_read_the_weights(tmp_path):
    """A server often runs under one."""
    model = load_golden_model("v1")
    folder = write_checkpoint(model, tmp_path / "out", FOLDER / "v1", layout="upstream", dtype=torch.float32)
    assert {path.stat().st_mode & 0o444 for path in folder.glob("*.safetensors")} == {0o444}


def test_bf16_is_written_rounded_once_and_verified(tmp_path):
    base = tmp_path / "base"
    model, _ = build_tiny_model("v1")
    model.save_pretrained(base)
    save_adapter(tmp_path / "adapter", load_model(str(base), dtype="float32"))
    merged = merge_adapter(load_model(str(base), dtype="float32"), tmp_path / "adapter", PROBE)
    expected = {name: p.detach().to(torch.bfloat16) for name, p in merged.named_parameters()}
    folder = write_checkpoint(merged, tmp_path / "out", base, layout="native", dtype=torch.bfloat16)
    assert all(torch.equal(p, expected[n]) for n, p in load_model(str(folder)).named_parameters())
    assert verify_written(folder, merged, PROBE, torch.bfloat16) < 1e-3
    # A file that is not what was merged is found.
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(MergeError, match="do not come back as merged .lm_head.weight"):
        verify_written(folder, merged, PROBE, torch.bfloat16)


def test_upstreams_layout_needs_upstreams_config(tmp_path):
    model, _ = build_tiny_model("v1")
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="is in the native layout.*--layout native"):
        write_checkpoint(model, tmp_path / "out", tmp_path / "base", layout="upstream", dtype=torch.float32)
    with pytest.raises(ValueError, match="layout='other'"):
        write_checkpoint(model, tmp_path / "out", tmp_path / "base", layout="other", dtype=torch.float32)


def test_merging_into_4_bit_says_what_to_do_instead(tmp_path):
    save_adapter(tmp_path, build_tiny_model("v1")[0])
    with pytest.raises(MergeError, match="cannot be merged into a 4-bit base.*16-bit checkpoint"):
        merge_adapter(quantize_model(build_tiny_model("v1")[0]), tmp_path, PROBE)


def test_an_adapter_of_another_base_is_not_merged(tmp_path):
    save_adapter(tmp_path, build_tiny_model("v1", seed=0)[0])
    with pytest.raises(ValueError, match="trained on another base"):
        merge_adapter(build_tiny_model("v1", seed=1)[0], tmp_path, PROBE)


@pytest.mark.parametrize("parameters", [None, EXPERTS, EXPERTS[:1], EXPERTS[1:]])
@pytest.mark.parametrize("version", VERSIONS)
def test_an_exported_adapter_on_upstreams_weights_is_the_merged_checkpoint(tmp_path, version, parameters):
    """The definition of LoRA, W + alpha / r * B A, on upstream's own tensors, expert by expert."""
    save_adapter(tmp_path / "adapter", load_golden_model(version), target_parameters=parameters)
    model = load_golden_model(version)
    count = export_adapter(model, tmp_path / "adapter", tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "adapter_model.safetensors")
    assert len(exported) == count
    merged = merge_adapter(load_golden_model(version), tmp_path / "adapter", PROBE)
    expected = upstream_state_dict(merged, FOLDER / version, torch.float32)
    weights = load_file(FOLDER / version / "model.safetensors")
    layers = {key.partition(".lora_")[0] for key in exported}
    for layer in layers:
        product = exported[f"{layer}.lora_B.weight"] @ exported[f"{layer}.lora_A.weight"]
        name = f"{layer.removeprefix('base_model.model.')}.weight"
        weights[name] = weights[name] + 8 / 4 * product
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, atol=1e-6, rtol=1e-5, msg=name)
    config = json.loads((tmp_path / "exported" / "adapter_config.json").read_text(encoding="utf-8"))
    assert {f"base_model.model.{name}" for name in config["target_modules"]} == layers
    assert config["target_parameters"] is None and config["r"] == 4


def test_what_upstream_has_fused_is_refused_and_not_written_wrongly(tmp_path):
    clip = r".*vision_encoder\.encoder\.layers\.\d+\.self_attn\.q_proj"
    save_adapter(tmp_path / "adapter", load_golden_model("v1"), target_modules=clip)
    with pytest.raises(
        ValueError, match="self_attn.q_proj: upstream's checkpoint has this layer fused.*Merge the adapter"
    ):
        export_adapter(load_golden_model("v1"), tmp_path / "adapter", tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_every_exportable_layer_is_one_of_upstreams_tensors(version):
    model = load_golden_model(version)
    names = set(load_file(FOLDER / version / "model.safetensors"))
    linear = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear and name != "lm_head"]
    renamed = {name: upstream_module_name(model, name) for name in linear}
    assert all(f"{new}.weight" in names for new in renamed.values() if new)
    fused = {name for name, new in renamed.items() if new is None}
    assert all("vision_encoder" in name and name.endswith(("q_proj", "k_proj", "v_proj")) for name in fused)
    assert bool(fused) == (version == "v1")
