"""Strict loading of adapters."""

import json

import pytest
import torch
from helpers.adapters import save_trained_adapter
from helpers.models import rewrite_tensors
from safetensors.torch import load_file

from dsocr.common.run_files import ADAPTER_WEIGHTS_NAME
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import load_adapter, save_adapter_card, verify_saved_adapter
from dsocr.models.adapters import AdapterIdentity, base_fingerprint, load_adapter_card


@pytest.fixture
def adapter(tmp_path):
    model, _ = build_tiny_model("v1")
    trained = save_trained_adapter(model, tmp_path)
    save_adapter_card(tmp_path, trained, AdapterIdentity("some/base", "abc", {}))
    return tmp_path


def test_a_missing_tensor_is_refused(adapter):
    rewrite_tensors(adapter / ADAPTER_WEIGHTS_NAME, lambda tensors: tensors.pop(sorted(tensors)[0]))
    with pytest.raises(ValueError, match="1 of its tensors missing"):
        load_adapter(build_tiny_model("v1")[0], adapter)


def test_an_unexpected_tensor_is_refused(adapter):
    rewrite_tensors(
        adapter / ADAPTER_WEIGHTS_NAME,
        lambda tensors: tensors.update({"base_model.model.model.stray.lora_A.weight": torch.zeros(2, 2)}),
    )
    with pytest.raises(ValueError, match="unexpected.*stray"):
        load_adapter(build_tiny_model("v1")[0], adapter)


def test_an_adapter_of_another_architecture_is_refused(adapter):
    with pytest.raises(ValueError, match="another base model: 'some/base', revision 'abc'"):
        load_adapter(build_tiny_model("v2")[0], adapter)
    (adapter / "dsocr_adapter.json").unlink()
    with pytest.raises(ValueError, match="does not fit this base model"):
        load_adapter(build_tiny_model("v1", width=128)[0], adapter)


def test_an_adapter_of_another_base_of_the_same_shape_is_refused(adapter):
    other, _ = build_tiny_model("v1", seed=1)
    with pytest.raises(ValueError, match="trained on another base model"):
        load_adapter(other, adapter)


def test_the_fingerprint_is_that_of_the_weights_not_of_their_type():
    model, _ = build_tiny_model("v1")
    fingerprint = base_fingerprint(model)
    assert base_fingerprint(model.to(torch.bfloat16)) == fingerprint
    assert base_fingerprint(build_tiny_model("v1", seed=1)[0]) != fingerprint


def test_a_half_written_adapter_is_refused(adapter):
    content = (adapter / ADAPTER_WEIGHTS_NAME).read_bytes()
    (adapter / ADAPTER_WEIGHTS_NAME).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="half-written"):
        load_adapter(build_tiny_model("v1")[0], adapter)


def test_missing_files_are_named(tmp_path, adapter):
    with pytest.raises(FileNotFoundError, match="adapter_config.json"):
        load_adapter(build_tiny_model("v1")[0], tmp_path / "nothing")
    (adapter / ADAPTER_WEIGHTS_NAME).rename(adapter / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="pickle"):
        load_adapter(build_tiny_model("v1")[0], adapter)


def test_a_second_adapter_beside_the_first(adapter):
    model = load_adapter(build_tiny_model("v1")[0], adapter)
    load_adapter(model, adapter, adapter_name="second")
    assert model.active_adapter == "second"


def test_saving_is_verified(adapter):
    model = load_adapter(build_tiny_model("v1")[0], adapter, is_trainable=True)
    assert verify_saved_adapter(model, adapter) == len(load_file(adapter / ADAPTER_WEIGHTS_NAME))
    assert model.active_adapter == "default"
    assert list(model.peft_config) == ["default"]
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name).add_(1)
    with pytest.raises(ValueError, match="differ after saving"):
        verify_saved_adapter(model, adapter)


def test_the_card_tells_what_the_adapter_belongs_to(adapter):
    card = load_adapter_card(adapter)
    assert (card["base_model_name_or_path"], card["revision"]) == ("some/base", "abc")
    json.dumps(card)
