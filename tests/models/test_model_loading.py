"""Loading base models: strict, and clear about what is wrong."""

import json
import shutil

import pytest
import torch
from helpers.golden import FOLDER, golden_config, load_golden_model, load_with_config
from helpers.models import rewrite_tensors
from safetensors.torch import load_file

from dsocr.models import ModelLoadError, freeze_vision, load_model, vision_parameters


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copytree(FOLDER / "v1", tmp_path / "v1")
    return tmp_path / "v1"


def load(folder):
    return load_with_config(folder, golden_config("v1"))


def test_a_missing_tensor_raises(checkpoint):
    rewrite_tensors(
        checkpoint / "model.safetensors", lambda tensors: tensors.pop("model.layers.1.self_attn.q_proj.weight")
    )
    with pytest.raises(ModelLoadError, match="1 missing_keys: .*layers.1.self_attn.q_proj"):
        load(checkpoint)


def test_an_unexpected_tensor_raises(checkpoint):
    rewrite_tensors(
        checkpoint / "model.safetensors", lambda tensors: tensors.update({"model.stray.weight": torch.zeros(2)})
    )
    with pytest.raises(ModelLoadError, match="1 unexpected_keys: .*stray"):
        load(checkpoint)


def test_a_tensor_of_another_shape_raises(checkpoint):
    rewrite_tensors(
        checkpoint / "model.safetensors", lambda tensors: tensors.update({"lm_head.weight": torch.zeros(5, 64)})
    )
    with pytest.raises(ModelLoadError, match="lm_head"):
        load(checkpoint)


def test_a_truncated_file_raises(checkpoint):
    content = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelLoadError, match="could not be loaded"):
        load(checkpoint)


def test_pickled_weights_are_not_loaded(checkpoint):
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="safetensors"):
        load(checkpoint)


def test_wrong_folders_are_explained(tmp_path):
    with pytest.raises(ModelLoadError, match="no config.json"):
        load_model(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="holds an adapter"):
        load_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="model_type='bert'"):
        load_model(str(tmp_path))
    with pytest.raises(ModelLoadError, match="neither a local folder nor a model id"):
        load_model("/no/such/folder")


def test_both_layouts_give_the_same_model(version, tmp_path):
    model = load_golden_model(version)
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), dtype="float32")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, again.get_parameter(name)), name


def test_dtypes():
    assert load_golden_model("v1").dtype == torch.float32
    assert load_golden_model("v1", dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ValueError, match="dtype='float99'"):
        load_golden_model("v1", dtype="float99")


def test_generation_knows_its_control_tokens():
    config = load_golden_model("v1").generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (0, 1, 2)


def test_freezing_covers_the_whole_vision_side(tiny):
    model, _ = tiny
    count = freeze_vision(model)
    assert count == sum(parameter.numel() for parameter in vision_parameters(model).values())
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {n for n, _ in model.named_parameters() if "language_model" in n or n.startswith("lm_head")}
    hooks = len(model.model.vision_tower._forward_pre_hooks)
    freeze_vision(model)
    assert len(model.model.vision_tower._forward_pre_hooks) == hooks


def test_an_exception_in_the_tower_leaves_gradients_on(tiny_v1):
    model, _ = tiny_v1
    freeze_vision(model)
    with pytest.raises(RuntimeError):
        model.model.vision_tower(torch.zeros(1, 5, 64, 64))
    assert torch.is_grad_enabled()


def test_an_adapter_on_the_tower_gets_its_gradient_although_vision_was_frozen(tiny_v1, rows):
    from peft import LoraConfig, get_peft_model

    from dsocr.samples.collator import OcrCollator

    model, processor = tiny_v1
    freeze_vision(model)
    peft_model = get_peft_model(model, LoraConfig(target_modules=r".*vision_encoder.*\.q_proj", task_type="CAUSAL_LM"))
    peft_model(**OcrCollator(processor)(rows[:2])).loss.backward()
    assert all(parameter.grad is not None for parameter in peft_model.parameters() if parameter.requires_grad)


def test_a_hub_id_is_asked_for_its_revision(monkeypatch):
    from dsocr.models import loading

    asked = {}

    class Loaded(BaseException):
        pass

    def cached_file(name, filename, revision):
        asked.update(name=name, config_revision=revision)
        return FOLDER / "v1" / filename

    def from_pretrained(name, **options):
        asked.update(weights_revision=options["revision"], safetensors=options["use_safetensors"])
        assert "trust_remote_code" not in options
        raise Loaded

    monkeypatch.setattr(loading, "cached_file", cached_file)
    monkeypatch.setattr(loading.find_model_class("unlimited_ocr"), "from_pretrained", from_pretrained)
    with pytest.raises(Loaded):
        load_model("deepseek-ai/DeepSeek-OCR", revision="abc123")
    assert asked == {
        "name": "deepseek-ai/DeepSeek-OCR",
        "config_revision": "abc123",
        "weights_revision": "abc123",
        "safetensors": True,
    }


def test_a_hub_that_cannot_be_reached_is_said():
    with pytest.raises(ModelLoadError, match="neither a local folder nor a model id that can be reached"):
        load_model("deepseek-ai/DeepSeek-OCR")


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_experts_are_filled_with_what_the_file_holds(version):
    """Expert by expert, against upstream's own tensors."""
    model = load_golden_model(version)
    tensors = load_file(FOLDER / version / "model.safetensors")
    seen = 0
    for name, parameter in model.named_parameters():
        if ".mlp.experts." not in name:
            continue
        layer = name.split("layers.")[1].split(".")[0]
        for expert, weight in enumerate(parameter):
            stem = f"model.layers.{layer}.mlp.experts.{expert}"
            if name.endswith("gate_up_proj"):
                expected = torch.cat([tensors[f"{stem}.gate_proj.weight"], tensors[f"{stem}.up_proj.weight"]])
            else:
                expected = tensors[f"{stem}.down_proj.weight"]
            assert torch.equal(weight.detach(), expected.to(weight.dtype))
            seen += 1
    assert seen > 4


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_a_missing_expert_raises(checkpoint, part):
    rewrite_tensors(
        checkpoint / "model.safetensors",
        lambda tensors: tensors.pop(f"model.layers.1.mlp.experts.2.{part}_proj.weight"),
    )
    with pytest.raises(ModelLoadError, match="experts|automatic conversion of the weights"):
        load(checkpoint)
