"""What is set and said at the start of a run."""

import os
import stat
import subprocess
import sys

import pytest
import torch

from dsocr.common.machine import describe_machine, half_dtype, peak_memory_gib, prepare_process, warn_about_unused_gpu


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


def test_a_driver_too_old_for_this_torch_is_said(fake_card, monkeypatch, caplog):
    fake_card(0, "GPU 0: NVIDIA (UUID: GPU-1)")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert warn_about_unused_gpu()
    assert "the driver is too old or broken" in caplog.text and "CUDA 13.0" in caplog.text


def test_a_hidden_card_is_silent(fake_card, monkeypatch):
    fake_card(0, "GPU 0: NVIDIA (UUID: GPU-1)")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not warn_about_unused_gpu()


@pytest.mark.parametrize(
    ("visible", "world", "expected"),
    [(None, "1", "0"), ("2,3", "1", "2"), ("", "1", ""), ("0,1", "2", "0,1"), ("GPU-5", None, "GPU-5")],
)
def test_one_process_takes_one_gpu(monkeypatch, visible, world, expected):
    for name, value in (("CUDA_VISIBLE_DEVICES", visible), ("WORLD_SIZE", world)):
        # Set it first, so that it is restored as it was.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
        if value is not None:
            monkeypatch.setenv(name, value)
    prepare_process()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected


@pytest.mark.parametrize(("supported", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_the_half_type_is_the_cards_own(monkeypatch, supported, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported)
    assert half_dtype() is expected


def test_nothing_is_uploaded_unless_asked():
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_machine_and_memory():
    machine = describe_machine()
    assert machine["torch"] == torch.__version__ or machine["torch"] in torch.__version__
    assert "device" in machine and "trl" in machine
    assert 0.05 < peak_memory_gib() < 1000


def start(code, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | variables
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return ended.stdout.strip()


THREADS = """
import torch

from dsocr.common.machine import prepare_process

prepare_process()
print(torch.get_num_threads())
"""
# As `accelerate launch` does: it sets the variable for its child.
LAUNCHED = f"""
import os, subprocess, sys

os.environ.update(OMP_NUM_THREADS="1", ACCELERATE_MIXED_PRECISION="no")
print(subprocess.run([sys.executable, "-c", {THREADS!r}], capture_output=True, text=True).stdout)
"""


@pytest.mark.slow
def test_threads_that_a_person_chose_are_respected():
    cores = len(os.sched_getaffinity(0))
    assert start(THREADS, OMP_NUM_THREADS="1") == "1"
    assert start(LAUNCHED) == str(cores)
    assert start(LAUNCHED, OMP_NUM_THREADS="1") == "1"


@pytest.mark.slow
def test_the_first_line_that_a_newcomer_sees_is_ours():
    code = "import dsocr; import trl; from trl import SFTTrainer; import bitsandbytes"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gemm_4bit" not in ended.stdout + ended.stderr
