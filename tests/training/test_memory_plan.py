"""The memory plan against what real tensors take, and what it says."""

import json
import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import yaml
from helpers.paths import REPOSITORY

from dsocr.cli.options import memory_settings
from dsocr.cli.training import parse_arguments
from dsocr.common.errors import explain
from dsocr.lab.memory import measure_steps
from dsocr.lab.packing import quantize_model
from dsocr.lab.random_models import StepOptions
from dsocr.lab.tiny import PATCH_SIZE, SIZE_DIVISOR, build_tiny_model
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.models.config import RELEASED, released_config
from dsocr.models.loading import TINY_BASE
from dsocr.samples.geometry import image_geometry
from dsocr.training.memory_plan import plan
from dsocr.training.memory_plan.live_memory import LiveMemory
from dsocr.training.memory_plan.plan import CARDS_GIB, largest_image, plan_memory
from dsocr.training.memory_plan.plan_report import NotEnoughMemoryError, check_memory, plan_run, refuse_large_model
from dsocr.training.memory_plan.settings import MemorySettings


EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
PRESETS = sorted((REPOSITORY / "recipes" / "configs").glob("*gb.yaml"))


def test_live_memory_counts_storages_once_and_forgets_them():
    with LiveMemory() as memory:
        first = torch.zeros(1000)
        view = first.view(10, 100)
        assert memory.live == 4000
        second = first + 1
        assert (memory.live, memory.peak) == (8000, 8000)
        del first
        assert memory.live == 8000, "the view holds the storage"
        del view, second
        assert (memory.live, memory.peak) == (0, 8000)
        memory.restart_peak()
        assert memory.peak == 0
        torch.zeros(1000, device="meta")
        assert memory.peak == 0


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("mode", ["base", "gundam"])
@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_the_planned_peak_of_a_step_is_the_measured_one(version, mode, four_bit, batch_size):
    """Tensor by tensor, on the CPU. The released shapes were measured by recipes/measure_memory.py (docs/memory.md)."""
    config = build_tiny_model(version)[0].config
    geometry = image_geometry(version, mode, size_divisor=SIZE_DIVISOR, patch_size=PATCH_SIZE)
    model = build_tiny_model(version)[0].to(torch.bfloat16)
    model = quantize_model(model) if four_bit else model
    step = StepOptions(geometry, largest_image(geometry), batch_size, answer_tokens=24, checkpointing=True)
    measured = measure_steps(model, step)
    settings = MemorySettings(
        load_in_4bit=four_bit,
        target_modules=LANGUAGE_MODEL_TARGETS,
        batch_size=batch_size,
        answer_tokens=24,
        optim="adamw_torch",
        compact_head=False,
    )
    planned = plan_memory(config, geometry, settings)
    assert planned.training_peak_bytes == pytest.approx(measured["step_peak_bytes"], rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_deep_model_is_planned_by_shallow_ones_to_the_byte(version):
    """Against a fake step through all of its layers."""
    config = deepcopy(build_tiny_model(version)[0].config)
    text, sam = config.text_config, config.vision_config.sam_config
    text.num_hidden_layers, text.mlp_layer_types = 8, ["dense", *["sparse"] * 7]
    if getattr(text, "layer_types", None):
        text.layer_types = ["full_attention"] * 8
    sam.num_hidden_layers, sam.global_attn_indexes = 5, [1, 4]
    geometry = image_geometry(version, "gundam", size_divisor=SIZE_DIVISOR, patch_size=PATCH_SIZE)
    for targets, four_bit in ((LANGUAGE_MODEL_TARGETS, False), (LANGUAGE_MODEL_TARGETS, True), (None, False)):
        settings = MemorySettings(target_modules=targets, load_in_4bit=four_bit, answer_tokens=600)
        whole = plan._combine(plan._measure_phases(config, geometry, settings))
        planned = plan_memory(config, geometry, settings)
        assert whole.items() <= planned.to_dict().items()


@pytest.mark.slow
def test_the_released_shapes_have_the_released_sizes():
    config = released_config("v1")
    geometry = image_geometry("v1", "base")
    expected = {  # stack-facts of this project, measured on a loaded model
        (False, False): 6.67,
        (True, False): 2.81,
        (True, True): 2.23,
    }
    for (four_bit, vision), gigabytes in expected.items():
        settings = MemorySettings(
            load_in_4bit=four_bit, quantize_vision=vision, target_modules=LANGUAGE_MODEL_TARGETS, eval_batch_size=1
        )
        assert plan_memory(config, geometry, settings).weights_bytes / 1e9 == pytest.approx(gigabytes, abs=0.005)
    as_shipped = MemorySettings(load_in_4bit=True, quantize_vision=True, quantize_experts=False, eval_batch_size=1)
    assert plan_memory(config, geometry, as_shipped).weights_bytes / 1e9 == pytest.approx(5.83, abs=0.01)
    assert set(RELEASED.values()) == {"v1", "v2", "unlimited"}


@pytest.mark.slow
def test_other_types_than_bf16_are_planned_too():
    """A T4 has no bf16, and fake tensors have no other grouped product."""
    half, single, brain = (
        plan_run(None, MemorySettings(dtype, target_modules=LANGUAGE_MODEL_TARGETS), with_savings=False).plan
        for dtype in (torch.float16, torch.float32, torch.bfloat16)
    )
    assert half == brain
    assert single.weights_bytes == pytest.approx(2 * brain.weights_bytes, rel=0.01)
    assert single.language_bytes == 2 * brain.language_bytes


@pytest.mark.slow
def test_what_costs_memory_costs_memory():
    config = build_tiny_model("v1")[0].config
    base = MemorySettings(target_modules=LANGUAGE_MODEL_TARGETS, eval_batch_size=1)

    def plan(mode="base", **changes):
        geometry = image_geometry("v1", mode, size_divisor=SIZE_DIVISOR, patch_size=PATCH_SIZE)
        return plan_memory(config, geometry, replace(base, **changes))

    plain = plan()
    assert plan(checkpointing=False).language_bytes > 1.2 * plain.language_bytes
    assert plan(batch_size=4).vision_bytes > 1.8 * plain.vision_bytes
    assert plan("gundam").image_tokens > plain.image_tokens and plan("gundam").vision_bytes > plain.vision_bytes
    assert plan(optim="paged_adamw_8bit").optimizer_bytes < 0.3 * plain.optimizer_bytes
    assert plan(target_parameters=EXPERTS).trainable_parameters > plain.trainable_parameters
    assert plan(compact_head=False).logits_bytes > plain.logits_bytes
    assert plan(eval_batch_size=8).evaluation_bytes > 4 * plain.evaluation_bytes
    released = plan_memory(released_config("v1"), image_geometry("v1", "gundam"), base)
    assert (released.trainable_parameters, released.image_tokens) == (3_978_240, 1263)


def test_planning_leaves_nothing_behind():
    """bitsandbytes caches its tables; a fake one in the cache would break the next real quantisation."""
    settings = MemorySettings(load_in_4bit=True, target_modules=LANGUAGE_MODEL_TARGETS)
    config = build_tiny_model("v1")[0].config
    plan_memory(config, image_geometry("v1", "base", size_divisor=SIZE_DIVISOR, patch_size=PATCH_SIZE), settings)
    assert torch.get_default_dtype() == torch.float32
    model = quantize_model(build_tiny_model("v1")[0])
    assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 7]])).logits).all()


def test_the_largest_image_costs_the_most_tokens():
    for version, most in (("v1", 1263), ("v2", 1121)):
        geometry = image_geometry(version, "gundam")
        assert geometry.count_tokens(*largest_image(geometry)) == most


@pytest.mark.slow
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_fits_its_card_and_says_what_was_planned(path):
    arguments = parse_arguments(["--config", str(path), "--plan"], qlora=path.name.startswith("qlora"))
    script, model = arguments.script, arguments.model
    settings = memory_settings(arguments)
    report = plan_run(model.model_name_or_path, settings, image_mode=script.image_mode, with_savings=False)
    card = int(re.search(r"(\d+)gb", path.stem)[1])
    assert report.plan.fits(card)
    text = path.read_text(encoding="utf-8")
    assert f"Planned peak on the released shapes of v1: {report.plan.peak_bytes / 1e9:.2f} GB" in text
    assert f"{card} GB" in text
    recipe = "qlora" if path.name.startswith("qlora") else "sft_lora"
    assert f"recipes/{recipe}.py" in text
    assert yaml.safe_load(text)["output_dir"] == f"outputs/{path.stem}"


def test_there_is_a_preset_for_every_card():
    cards = {int(re.search(r"(\d+)gb", path.stem)[1]) for path in PRESETS}
    assert cards == {4, 8, 16, 24} <= set(CARDS_GIB)


@pytest.mark.slow
def test_the_report_says_what_fits_and_what_frees_most():
    settings = MemorySettings(target_modules=LANGUAGE_MODEL_TARGETS, checkpointing=False)
    report = plan_run("deepseek-ai/DeepSeek-OCR-2", settings)
    text = "\n".join(report.describe())
    assert "8 GB no" in text and "80 GB yes" in text
    assert list(report.savings.values()) == sorted(report.savings.values(), reverse=True)
    assert {"--load_in_4bit", "--activation_checkpointing true", "--image_mode base"} <= set(report.savings)
    assert text.count(" + ") == 1, "the deciding phase is marked"
    fields = json.loads(report.to_json())
    assert fields["peak_bytes"] == report.plan.peak_bytes and fields["weights_bytes"] > 6e9
    assert fields["fits_gib"] == [card for card in CARDS_GIB if report.plan.fits(card)]


@pytest.mark.slow
def test_a_gpu_that_is_too_small_gets_the_plan_and_not_a_trace():
    settings = MemorySettings(target_modules=LANGUAGE_MODEL_TARGETS, eval_batch_size=1)
    report = plan_run("deepseek-ai/DeepSeek-OCR", settings, with_savings=False)
    check_memory(report, int(report.plan.peak_bytes / 1.1))
    with pytest.raises(NotEnoughMemoryError, match=r"this GPU has 4.3 GB, which is not enough.\nmemory plan for"):
        check_memory(report, 4 * 2**30)
    message = explain(torch.OutOfMemoryError("CUDA out of memory"), lambda: "\n".join(report.describe()))
    assert message.startswith("out of memory. memory plan for deepseek-ai/DeepSeek-OCR")


def test_a_released_size_is_not_trained_on_a_cpu_unasked(monkeypatch):
    reason = "this machine has GPU 0: T4, but torch 2.13.0 is a CPU build."
    monkeypatch.setattr("dsocr.training.memory_plan.plan_report.find_unused_gpu", lambda: reason)
    for name in RELEASED:
        with pytest.raises(
            ValueError, match=r"3\.\d billion parameters, and this machine has GPU 0: T4.*--use_cpu true"
        ):
            refuse_large_model(name)
    refuse_large_model(None)
    refuse_large_model(str(TINY_BASE))
