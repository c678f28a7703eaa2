"""The repair of the checkpoint rules, and what happens without it."""

import pytest
import torch
from helpers.adapters import save_trained_adapter, shipped_rules
from transformers import conversion_mapping

from dsocr.lab.tiny import build_tiny_model
from dsocr.models import load_adapter, repair_checkpoint_rules
from dsocr.models.checkpoint_rules import MODEL_TYPES


@pytest.fixture
def upstream_rules():
    with shipped_rules():
        yield


def test_without_the_repair_no_adapter_comes_back(upstream_rules, version, tmp_path):
    save_trained_adapter(build_tiny_model(version)[0], tmp_path)
    with pytest.raises(ValueError, match="did not reach the model|does not fit"):
        load_adapter(build_tiny_model(version)[0], tmp_path)


def test_with_the_repair_every_tensor_comes_back(version, tmp_path):
    trained = save_trained_adapter(build_tiny_model(version)[0], tmp_path)
    loaded = load_adapter(build_tiny_model(version)[0], tmp_path)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        expected = trained(input_ids=ids).logits
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        with loaded.disable_adapter():
            assert not torch.allclose(loaded(input_ids=ids).logits, expected, atol=1e-3)


def test_the_repair_changes_three_rules_and_then_steps_aside(upstream_rules):
    assert repair_checkpoint_rules() == {"unlimited_ocr": 3, "deepseek_ocr2": 3}
    assert repair_checkpoint_rules() == {"unlimited_ocr": 0, "deepseek_ocr2": 0}


def test_the_repair_keeps_every_other_rule_and_its_order(upstream_rules):
    shipped = {kind: conversion_mapping.get_checkpoint_conversion_mapping(kind) for kind in MODEL_TYPES}
    repair_checkpoint_rules()
    for model_type, before in shipped.items():
        after = conversion_mapping.get_checkpoint_conversion_mapping(model_type)
        changed = [old for old, new in zip(before, after, strict=True) if repr(old) != repr(new)]
        assert len(changed) == 3
        assert all(rule._original_source_patterns[0].startswith(r"(^|model\.)") for rule in changed)


def test_it_says_so_when_upstream_has_mended_the_rules(upstream_rules, monkeypatch, caplog):
    repair_checkpoint_rules()
    monkeypatch.setattr(conversion_mapping, "USER_REGISTERED_MAPPINGS", set())
    with caplog.at_level("INFO"):
        repair_checkpoint_rules()
    assert "anchored upstream" in caplog.text


def test_importing_dsocr_alone_is_light():
    import subprocess
    import sys

    code = "import sys, dsocr; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'peft')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
