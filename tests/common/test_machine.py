"""What is set and said at the start of a run."""

import os
import stat

import pytest
import torch

from dsocr.common.machine import describe_machine, peak_memory_gib, warn_about_unused_gpu


@pytest.fixture
def fake_card(tmp_path, monkeypatch):
    """A machine whose driver sees a card."""

    def install(code: int, output: str):
        script = tmp_path / "nvidia-smi"
        script.write_text(f"#!/bin/sh\necho '{output}'\nexit {code}\n")
        script.chmod(script.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setattr(torch.version, "cuda", None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    return install


def test_a_card_that_this_torch_cannot_use_is_said_with_the_cure(fake_card, caplog):
    fake_card(0, "GPU 0: NVIDIA GeForce RTX 5060 Ti (UUID: GPU-1)")
    assert warn_about_unused_gpu()
    assert "GPU 0: NVIDIA GeForce RTX 5060 Ti, but torch" in caplog.text
    assert "CPU build" in caplog.text and "pytorch.org/get-started" in caplog.text


def test_no_card_and_a_broken_driver_are_silent(fake_card, caplog):
    fake_card(9, "NVIDIA-SMI has failed")
    assert not warn_about_unused_gpu()
    assert not caplog.text


def test_a_cuda_build_is_silent(fake_card, monkeypatch):
    fake_card(0, "GPU 0: NVIDIA (UUID: GPU-1)")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert not warn_about_unused_gpu()


def test_nothing_is_uploaded_unless_asked():
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_machine_and_memory():
    machine = describe_machine()
    assert machine["torch"] == torch.__version__ or machine["torch"] in torch.__version__
    assert "device" in machine and "trl" in machine
    assert 0.05 < peak_memory_gib() < 1000
