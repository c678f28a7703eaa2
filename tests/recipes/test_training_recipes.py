"""The recipes as a person runs them."""

import json
import re
import subprocess
import sys

import pytest
import torch
from helpers.paths import REPOSITORY
from helpers.recipes import FEW_STEPS, load_recipe
from safetensors.torch import load_file

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import VerifyArguments
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import load_adapter, load_model
from dsocr.models.adapters import load_adapter_card
from dsocr.samples.processor import OcrProcessor


def run(monkeypatch, *argv, name="sft_lora"):
    # As Python does for a script.
    monkeypatch.syspath_prepend(str(REPOSITORY / "recipes"))
    recipe = load_recipe(name)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, argv)])
    recipe.run(list(map(str, argv)))


def test_the_demonstration_says_what_it_is_and_how_to_do_the_real_thing(demonstration):
    first = "\n".join(demonstration[1].splitlines()[:6])
    assert "built-in demonstration" in first
    assert "--model_name_or_path deepseek-ai/DeepSeek-OCR --dataset_name" in first


def test_the_demonstration_shows_its_stages_and_preflight(demonstration):
    console = demonstration[1]
    for number in range(1, 9):
        assert re.search(rf"Step {number}: .* \.\.\. done \(", console), number
    for line in ("preflight: image tokens", "preflight: first loss", "trainable params:", "0 tensors missing"):
        assert line in console, line
    for name in ("held_out", "unseen_fonts", "print", "real_digits", "shuffled images"):
        assert re.search(rf"dsocr.report.results: {name} +\d+ ", console), name
    assert re.search(r"step 1/\d+: loss .* samples/s, .* image \+ .* text tokens/s, padding \d+%, peak .* GiB", console)
    log = (demonstration[0] / "run.log").read_text(encoding="utf-8")
    assert re.search(r"^\d{4}-\d\d-\d\d .* INFO dsocr.training.callbacks: step 1/", log, re.M)


def test_the_demonstration_ends_in_its_results(demonstration):
    folder, console = demonstration
    last = console.strip().splitlines()[-1]
    pattern = r"CER \d\.\d{3} -> \d\.\d{3}, WER \d\.\d{3} -> \d\.\d{3} on \d+ held-out lines; adapter in outputs/demo"
    assert re.fullmatch(pattern, last), last
    results = json.loads((folder / "ocr_results.json").read_text(encoding="utf-8"))
    for key in ("base", "adapter", "adapter_shuffled_images"):
        assert {"cer", "wer", "exact", "n"} <= set(results[key])
    assert results["sets"]["held_out"]["base"] == results["base"]
    assert set(results["sets"]) == {"held_out", "unseen_fonts", "print", "real_digits"}
    assert results["sets"]["print"]["base"]["cer"] < 0.3 < results["base"]["cer"]
    assert results["adapter"]["cer"] < results["base"]["cer"]
    assert results["adapter_shuffled_images"]["cer"] > results["adapter"]["cer"]
    assert results["dropped"] == {} and results["renamed"] == {}
    losses = [e["loss"] for e in json.loads((folder / "trainer_state.json").read_text())["log_history"] if "loss" in e]
    assert losses[-1] < losses[0]


def test_the_demonstrations_adapter_loads_on_its_base_by_itself(demonstration):
    folder, _ = demonstration
    card = load_adapter_card(folder)
    assert card["image_mode"] == "gundam" and card["prompt"] == "<image>\nFree OCR."
    base = load_model(str(folder / "base_model"))
    model = load_adapter(base, folder)
    assert any((p != 0).any() for n, p in model.named_parameters() if "lora_B" in n)
    assert OcrProcessor.from_pretrained(folder).image_mode == "gundam"
    assert json.loads((folder / "adapter_config.json").read_text())["task_type"] == "CAUSAL_LM"


def test_verify_checkpoint_reads_the_shipped_sample_with_an_adapter(demonstration, monkeypatch, capsys):
    # The card's base is relative to where the demonstration ran.
    monkeypatch.chdir(demonstration[0])
    assert load_recipe("verify_checkpoint").main(parse_recipe(VerifyArguments, ["."], None)) == 0
    shown = capsys.readouterr().out
    for word in ("0 missing, 0 unexpected", "The quick brown fox", "CER", "below chance: sound", "every one loaded"):
        assert word in shown


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_model_folder_and_a_dataset_folder(version, monkeypatch, tmp_path, line_folder):
    model, processor = build_tiny_model(version)
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    out = tmp_path / "out"
    named = ["--model_name_or_path", tmp_path / "base", "--dataset_name", line_folder, "--output_dir", out]
    run(monkeypatch, *named, *FEW_STEPS, "--extra_eval_datasets", f"again={line_folder}", "--model_revision", "main")
    results = json.loads((out / "ocr_results.json").read_text(encoding="utf-8"))
    assert set(results["sets"]) == {"held_out", "again"} and results["sets"]["again"]["base"]["n"] == 16
    assert load_adapter_card(out)["base_model_name_or_path"] == str(tmp_path / "base")
    assert len(load_file(out / "adapter_model.safetensors")) == 2 * 21
    if version == "v1":
        # A run that was stopped goes on from the newest complete checkpoint.
        (out / "checkpoint-4" / "optimizer.pt").unlink()
        run(monkeypatch, *named, *FEW_STEPS, "--resume_from_checkpoint")
        log = (out / "run.log").read_text(encoding="utf-8")
        assert "skipped" in log and f"resuming from {out / 'checkpoint-2'}" in log
        # Another run's checkpoint is refused before any feature is computed.
        (out / "run.log").unlink()
        with pytest.raises(SystemExit):
            run(monkeypatch, *named, *FEW_STEPS, "--resume_from_checkpoint", "--lora_r", "3")
        log = (out / "run.log").read_text(encoding="utf-8")
        assert "--lora_r is now 3" in log and "LoRA ..." in log and "preflight" not in log


def test_bad_inputs_end_in_one_clear_line(monkeypatch, tmp_path, line_folder, capsys):
    model, processor = build_tiny_model("v1")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "metadata.jsonl").write_text("")
    common = ["--output_dir", tmp_path / "out", *FEW_STEPS]
    base = ["--model_name_or_path", tmp_path / "base"]
    for argv, message in (
        ([*base, "--dataset_name", tmp_path / "empty"], "no usable sample"),
        ([*base, "--dataset_name", tmp_path / "gone"], "there is no such file or folder"),
        (["--model_name_or_path", tmp_path / "empty", "--dataset_name", line_folder], "no config.json"),
        ([*base, "--dataset_name", line_folder, "--image_mode", "huge"], "image_mode='huge'"),
        ([*base, "--dataset_name", line_folder, "--max_length", "90"], "are more than 90"),
        ([*base, "--dataset_name", line_folder, "--resume_from_checkpoint", "true"], "no complete checkpoint"),
    ):
        with pytest.raises(SystemExit) as stop:
            run(monkeypatch, *argv, *common)
        assert stop.value.code == 1
        shown = capsys.readouterr().out
        assert message in shown and "Traceback" not in shown, message
    # The trace is kept for whoever wants to report it.
    assert "Traceback" in (tmp_path / "out" / "run.log").read_text(encoding="utf-8")


def test_skipping_overlong_samples_is_counted(monkeypatch, tmp_path, line_folder):
    run(
        monkeypatch,
        "--dataset_name",
        line_folder,
        "--output_dir",
        tmp_path,
        *FEW_STEPS,
        "--max_length",
        "94",
        "--on_bad_sample",
        "skip",
    )
    skipped = json.loads((tmp_path / "skipped_samples.json").read_text(encoding="utf-8"))
    assert 0 < skipped["counts"]["too_long"] < 16
    results = json.loads((tmp_path / "ocr_results.json").read_text(encoding="utf-8"))
    assert results["skipped"] == skipped["counts"]


def test_full_fine_tuning_and_early_stopping(monkeypatch, tmp_path, line_folder):
    run(
        monkeypatch,
        "--dataset_name",
        line_folder,
        "--output_dir",
        tmp_path,
        *FEW_STEPS,
        "--use_peft",
        "false",
        "--early_stopping_patience",
        "1",
    )
    assert (tmp_path / "model.safetensors").is_file() and not (tmp_path / "adapter_config.json").exists()
    again = load_model(str(tmp_path))
    base = load_model(str(tmp_path / "base_model"))
    assert not torch.equal(again.lm_head.weight, base.lm_head.weight)
    assert torch.equal(again.model.multi_modal_projector.weight, base.model.multi_modal_projector.weight)


def test_qlora_trains_on_a_4_bit_base_and_its_adapter_serves_the_full_one(monkeypatch, tmp_path, line_folder):
    experts = ["--lora_target_parameters", "mlp.experts.gate_up_proj", "mlp.experts.down_proj", "--lora_dropout", "0"]
    argv = ["--dataset_name", line_folder, "--output_dir", tmp_path, *FEW_STEPS, *experts]
    run(monkeypatch, *argv, name="qlora")
    results = json.loads((tmp_path / "ocr_results.json").read_text(encoding="utf-8"))
    transferred = results["adapter_on_full_precision"]
    assert {"cer", "cer_low", "cer_high", "n"} <= set(transferred)
    assert transferred["n"] == results["adapter"]["n"]
    log = (tmp_path / "run.log").read_text(encoding="utf-8")
    assert "nf4 weights, 0 tensors missing" in log and "Step 9: CER of the adapter on the full-precision base" in log
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(".experts." in name for name in stored) == 2 * 2 * 2
    model = load_adapter(load_model(str(tmp_path / "base_model")), tmp_path)
    assert any((p != 0).any() for n, p in model.named_parameters() if ".experts." in n and "lora_B" in n)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft_lora", "qlora"])
def test_plan_answers_before_anything_is_loaded(monkeypatch, tmp_path, capsys, name):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "--model_name_or_path", "deepseek-ai/DeepSeek-OCR", "--plan", "json", name=name)
    shown = capsys.readouterr().out
    plan = json.loads(shown[shown.index("{") :])
    assert plan["weights_bytes"] == pytest.approx({"sft_lora": 6.67e9, "qlora": 2.81e9}[name], rel=0.01)
    assert plan["peak_bytes"] > plan["weights_bytes"] and plan["fits_gib"] and plan["savings"]
    assert not list(tmp_path.iterdir()), "planning writes nothing"


@pytest.mark.slow
def test_recipes_show_help():
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    paths = sorted((REPOSITORY / "recipes").glob("*.py"))
    # Side by side: each spends seconds on importing.
    started = [(path, subprocess.Popen([sys.executable, str(path), "--help"], **options)) for path in paths]
    for path, process in started:
        shown, errors = process.communicate(timeout=300)
        assert process.returncode == 0 and "usage:" in shown, (path.name, errors[-2000:])
