"""The check of a GPU: every step on a CPU at tiny size, and what becomes of steps that fail, hang or do not fit."""

import itertools
import json
import multiprocessing
import os
import re
import signal
import time
from dataclasses import replace
from functools import partial

import pytest
import torch
from helpers.paths import REPOSITORY
from helpers.recipes import load_recipe

from dsocr.cli.parser import parse_recipe
from dsocr.lab.arguments import GpuCheckArguments
from dsocr.lab.gpu_check import environment, kernels, report, setup, steps
from dsocr.lab.gpu_check.setup import (
    FAILED,
    FULL_BATCHES,
    NOT_HERE,
    STEP_NAMES,
    NotOnThisDevice,
    choose_setup,
    measure_probes,
    refuse_unplanned,
)
from dsocr.lab.gpu_check.steps import STEPS, Step, StepResult, run_step, run_steps
from dsocr.lab.tables import build_section, save_result


CONFIGS = REPOSITORY / "recipes" / "configs"
# What a machine without an NVIDIA card and without Triton has no means for; everything else runs on a CPU.
CUDA_ALONE = {
    "environment": {"driver", "CUDA", "Triton", "matrix rate TF32"},
    "kernels": {"TRL's head with Triton", "4-bit codes, CPU and GPU"},
    "batches": {
        "launches, batch 1, checkpointing",
        "launches, batch 2, no checkpointing",
        "launches, batch 4, no checkpointing",
    },
    "cards": {"12 GiB allowed", "16 GiB allowed"},
}


@pytest.fixture
def tiny_setup(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return choose_setup("tiny", "v1", tmp_path, CONFIGS)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a CPU does")
def test_every_step_runs_on_a_cpu_at_tiny_size(tmp_path, capsys):
    docs = tmp_path / "docs"
    docs.mkdir()
    for kind in ("speed", "memory"):
        (docs / f"{kind}.md").write_text(
            f"a\n<!-- {kind} table -->\n<!-- end of {kind} table -->\nb\n", encoding="utf-8"
        )
    argv = ["--size", "tiny", "--output_dir", str(tmp_path / "out"), "--docs", str(docs)]
    assert load_recipe("gpu_check").main(parse_recipe(GpuCheckArguments, argv, None)) == 0
    shown = capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "gpu_check.json").read_text(encoding="utf-8"))
    assert tuple(result["steps"]) == STEP_NAMES == tuple(STEPS)
    rows = {name: step["rows"] for name, step in result["steps"].items()}
    for name, step in result["steps"].items():
        assert step["status"] == "done" and rows[name], name
        missing = {title for title, row in rows[name].items() if NOT_HERE in row}
        allowed = CUDA_ALONE.get(name, set())
        # Compilers and headers depend on the machine.
        assert missing - {"compiler", "Python.h"} <= allowed, name
        assert allowed - missing <= {"Triton"}, f"{name}: a CPU cannot have measured {allowed - missing}"
        for title in missing:
            assert f"{title} " in shown
    assert shown.count("not on this device: ") == sum(
        NOT_HERE in row for step in rows.values() for row in step.values()
    )

    assert rows["kernels"]["experts, grouped_mm against the loop"]["output_difference"] < 1e-4
    assert rows["kernels"]["experts, grouped_mm against the loop"]["gradient_difference"] < 1e-4
    # Bit for bit on a CPU.
    assert rows["kernels"]["experts, grouped_mm against the loop"]["frozen_output_difference"] == 0
    assert rows["kernels"]["experts, grouped_mm against the loop"]["frozen_gradient_difference"] == 0
    assert abs(rows["kernels"]["TRL's head in torch"]["loss_difference"]) < 1e-4
    assert rows["kernels"]["SAM's bias in pieces"]["largest_difference"] == 0
    assert "flash" in rows["kernels"]["attention, without padding"]["language"]
    for dtype in ("bfloat16", "float16"):
        assert 0.99 < rows["precisions"][f"{dtype} on the CPU"]["gradient_cosine"] <= 1.0001
    for row in rows["batches"].values():
        if NOT_HERE not in row:
            assert row["allocated_peak_bytes"] == pytest.approx(row["planned_peak_bytes"], rel=0.25)
            assert row["samples_per_second"] > 0 and 0 < row["mfu"] < 1
    weights = {name: row["weights_bytes"] for name, row in rows["quantized"].items()}
    assert weights["4 bit here, vision too"] < weights["4 bit here"] < weights["bf16 LoRA"]
    experts, plain = rows["quantized"]["4 bit here, LoRA on the experts too"], rows["quantized"]["4 bit here"]
    assert experts["step_peak_bytes"] > plain["step_peak_bytes"]
    assert rows["reading"]["the same text with autocast"]["cer"] < 0.3
    assert rows["resuming"]["killed"]["exit_code"] == -signal.SIGKILL
    assert rows["resuming"]["killed"]["checkpoints"] == "checkpoint-3"
    assert rows["resuming"]["resumed"] == {"steps_compared": 5, "largest_loss_difference": 0, "equal": True}
    assert rows["cards"]["qlora_8gb on 12 GiB"]["peak_bytes"] > 0

    speed, memory = ((docs / f"{kind}.md").read_text(encoding="utf-8") for kind in ("speed", "memory"))
    for words in ("all together", "Training steps with kept features", "The tower sees", "Reading by generation"):
        assert words in speed
    assert re.search(r"^\| 4 \| no \| \d", speed, re.M)
    # Loading is measured by measure_memory.py alone, so its cells stay empty.
    assert re.search(r"^\| 4 bit here \| [\d.]+ MB \|  \| [\d.]+ MB \| [\d.]+ \|  \|  \|  \|  \|$", memory, re.M)
    assert re.search(r"^\| `qlora_8gb.yaml` \| 12 GB \| 2 \| \d", memory, re.M)


def test_full_size_needs_a_gpu_and_says_so_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(setup, "find_unused_gpu", lambda: "this machine has GPU 0: T4, but torch is a CPU build.")
    with pytest.raises(ValueError, match=r"--size full needs a GPU: .*T4.*--size tiny") as refused:
        load_recipe("gpu_check").main(parse_recipe(GpuCheckArguments, ["--output_dir", str(tmp_path)], None))
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("*.json"))


def test_what_does_not_fit_the_time_is_named(tiny_setup):
    results = run_steps(STEP_NAMES, tiny_setup, 0.5)
    assert list(results) == list(STEP_NAMES)
    assert all(result.status == "not run" and "s of the time are left" in result.reason for result in results.values())
    content = report.summarize(tiny_setup, {"device": "x"}, results)
    assert not report.is_complete(content)
    lines = list(report.describe_check(content))
    assert len(lines) == len(STEP_NAMES) and "(kernels): not run" in lines[1]


def fail():
    raise KeyError("no such key")


def run_out_of_memory():
    raise torch.OutOfMemoryError("much text")


def lack(reason):
    raise NotOnThisDevice(reason, batch=3)


def good_then_bad(given):
    yield "good", lambda: {"value": 1}
    yield "fails", fail
    yield "large", run_out_of_memory
    yield "lacks", partial(lack, "needs CUDA")
    yield "good again", lambda: {"value": 2}


def test_one_measurement_that_fails_leaves_its_reason_and_the_rest_go_on():
    rows = dict(measure_probes(good_then_bad(None)))
    assert rows["good"] == {"value": 1} and rows["good again"] == {"value": 2}
    assert rows["fails"] == {FAILED: "KeyError: 'no such key'"}
    assert rows["large"] == {NOT_HERE: "out of memory"}
    assert rows["lacks"] == {NOT_HERE: "needs CUDA", "batch": 3}


def dying(given):
    yield "good", lambda: {"value": 1}
    yield "dies", lambda: os._exit(7)


def hanging(given):
    yield "good", lambda: {"value": 1}
    yield "hangs", lambda: time.sleep(600)


def broken(given):
    raise RuntimeError("no room for the model")
    yield


@pytest.mark.slow
def test_steps_that_die_hang_or_cannot_begin_end_alone(tiny_setup, monkeypatch):
    """In a forked process, which has the steps of this test."""
    monkeypatch.setattr(steps, "_process_context", lambda given: multiprocessing.get_context("fork"))
    for name, probes in (("dies", dying), ("hangs", hanging), ("broken", broken), ("mixed", good_then_bad)):
        monkeypatch.setitem(STEPS, name, Step(name, probes, 1))
    # Only the step that hangs may run out of its time, however busy the machine is.
    limits = {"dies": 60.0, "hangs": 4.0, "broken": 60.0, "mixed": 60.0}
    results = {name: run_step(name, tiny_setup, limit) for name, limit in limits.items()}
    assert results["dies"].status == "failed" and "exit code 7" in results["dies"].reason
    assert results["hangs"].status == "stopped" and results["hangs"].seconds < 30
    assert results["dies"].rows == results["hangs"].rows == {"good": {"value": 1}}
    assert results["broken"].status == "failed" and results["broken"].reason == "RuntimeError: no room for the model"
    assert "no room for the model" in steps._log_path(tiny_setup, "broken").read_text(encoding="utf-8")
    assert results["mixed"].status == "done" and len(results["mixed"].rows) == 5
    content = report.summarize(tiny_setup, {"device": "x"}, {"mixed": results["mixed"]})
    assert not report.is_complete(content) and any(
        "FAILED: KeyError" in line for line in report.describe_check(content)
    )


def test_the_driver_is_asked(tmp_path, monkeypatch):
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 'NVIDIA T4, 580.65, 15360 MiB, 7.5, 70.00 W, 1590 MHz'\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = environment._read_driver()
    assert (
        found["driver_version"] == "580.65" and found["memory_total"] == "15360 MiB" and found["compute_cap"] == "7.5"
    )
    script.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    with pytest.raises(RuntimeError, match="ended with 9: NVIDIA-SMI has failed"):
        environment._read_driver()


def test_processes_of_a_gpu_begin_anew(tiny_setup):
    """Importing bitsandbytes starts CUDA, which a forked process cannot use."""
    assert steps._process_context(replace(tiny_setup, device="cuda")).get_start_method() == "spawn"


def test_memory_that_runs_out_is_judged_by_its_plan(tiny_setup, monkeypatch):
    monkeypatch.setattr(setup, "total_bytes", lambda given: 10e9)
    with pytest.raises(RuntimeError, match=r"out of memory: 8\.00 GB are planned, 10\.00 GB are there"):
        refuse_unplanned(tiny_setup, 8_000_000_000)
    with pytest.raises(NotOnThisDevice, match=r"12\.00 GB are planned") as refused:
        refuse_unplanned(tiny_setup, 12_000_000_000, batch=32)
    assert refused.value.figures == {"planned_peak_bytes": 12_000_000_000, "batch": 32}


def test_a_wrong_kernel_shows(tiny_setup):
    """The comparison sees experts that compute something else."""
    model = tiny_setup.model()
    assert kernels._compare_experts(tiny_setup, model)["output_difference"] < 1e-4
    calls = itertools.count()
    # Every call gives a little more, so the two ways cannot agree.
    kernels.routed_experts(model).act_fn.register_forward_hook(lambda m, a, output: output * (1 + 0.01 * next(calls)))
    assert kernels._compare_experts(tiny_setup, model)["output_difference"] > 1e-3


def check_result(given, **rows):
    machine = {"device": "a card", "torch": "1", "transformers": "2", "bitsandbytes": "3"}
    return report.summarize(given, machine, {name: StepResult(name, rows=row) for name, row in rows.items()})


def test_cells_without_a_figure_stay_empty_and_older_figures_stay(tiny_setup, tmp_path):
    measured = {"batch": 8, "checkpointing": False, "seconds": 1.0, "samples_per_second": 8.0, "mfu": 0.25}
    batches = {
        "batch 8": {**measured, "planned_peak_bytes": 2e9},
        "launches, batch 8": {"launches": 3000, "waits": 7},
        "batch 32": {NOT_HERE: "out of memory", "batch": 32, "checkpointing": False, "planned_peak_bytes": 9e10},
        "batch 64": {FAILED: "RuntimeError"},
    }
    quantized = {"4 bit here": {"weights_bytes": 1e9, "step_peak_bytes": 2e9, "seconds": 1.0}}
    result = check_result(tiny_setup, batches=batches, quantized=quantized)
    earlier = report.memory_result(result) | {"rows": {"4bit": {"loading_peak_bytes": 3e9, "cer": 0.5, "seconds": 9.0}}}
    save_result(tmp_path, "memory", earlier)
    save_result(tmp_path, "memory", report.memory_result(result))
    save_result(tmp_path, "speed", report.speed_result(result))
    speed, memory = build_section(tmp_path, "speed"), build_section(tmp_path, "memory")
    assert "| 8 | no | 8 |  | 25% |  |  | 2.00 GB | 3000 | 7 |" in speed
    assert "| 32 | no |  |  |  |  |  | 90.00 GB |  |  |" in speed and "| 64 |" not in speed
    assert "| 4 bit here | 1.00 GB | 3.00 GB | 2.00 GB |  |  |  |  | 0.500 |" in memory
    assert "| bf16 LoRA |  |  |  |  |  |  |  |  |" in memory
    # Another machine's figures are not mixed with these.
    save_result(tmp_path, "memory", report.memory_result(result) | {"hardware": "another"})
    assert "3.00 GB" not in build_section(tmp_path, "memory")


def test_the_pages_have_an_empty_table_until_somebody_measures(tmp_path):
    for kind, first in (("speed", f"| {FULL_BATCHES[0][0]} | yes |"), ("memory", "| `qlora_4gb.yaml` | 12 GB |")):
        page = (REPOSITORY / "docs" / f"{kind}.md").read_text(encoding="utf-8")
        measured = (REPOSITORY / "docs" / f"{kind}_gpu.json").is_file()
        assert measured or re.search(rf"^{re.escape(first)}(  \|)+$", page, re.M), kind
