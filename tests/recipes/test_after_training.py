"""Evaluate, transcribe, merge and report as a person runs them, on the demonstration's adapter."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from helpers.paths import REPOSITORY
from helpers.recipes import load_recipe, start_recipe
from huggingface_hub import ModelCard
from PIL import Image

from dsocr.cli.parser import parse_recipe
from dsocr.cli.reading import EvaluateArguments, TranscribeArguments
from dsocr.cli.tools import MergeArguments, ReportArguments
from dsocr.common.errors import explained
from dsocr.data import load_ocr_dataset
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import load_adapter, load_model
from dsocr.models.adapters import find_base
from dsocr.reading.baselines import Baseline
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.reading.reader import load_reader
from dsocr.report.model_card import write_model_card
from dsocr.samples.processor import OcrProcessor


@pytest.fixture(scope="module")
def adapter(demonstration):
    return demonstration[0]


@pytest.fixture(scope="module")
def held_out(adapter):
    return adapter / "demo_data" / "test"


def evaluate(*argv):
    arguments = parse_recipe(EvaluateArguments, [*map(str, argv)], None)
    with explained():
        load_recipe("evaluate").main(arguments)


def transcribe_files(*argv):
    arguments = parse_recipe(TranscribeArguments, [*map(str, argv)], None)
    with explained():
        return load_recipe("transcribe").main(arguments)


def test_evaluation_goes_on_where_it_stopped_and_reports(adapter, held_out, tmp_path, monkeypatch):
    argv = ["--adapter", adapter, "--dataset_name", held_out, "--max_eval_samples", 20, "--output_dir", tmp_path]
    argv += ["--max_new_tokens", 24, "--per_device_eval_batch_size", 4]
    from dsocr.reading import judging

    read_lines, read = judging.read_lines, []

    def stop_in_the_middle(model, processor, images, options):
        for line in read_lines(model, processor, images, options):
            read.append(line.index)
            if len(read) == 10:
                raise KeyboardInterrupt
            yield line

    monkeypatch.setattr(judging, "read_lines", stop_in_the_middle)
    with pytest.raises(SystemExit) as stop:
        evaluate(*argv)
    assert stop.value.code == 130
    kept = (tmp_path / "predictions_base.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == 1 + 9

    counts = []
    monkeypatch.setattr(
        judging,
        "read_lines",
        lambda m, p, images, o: (counts.append(len(images)), read_lines(m, p, images, o))[1],
    )
    evaluate(*argv)
    assert counts == [11, 20]
    result = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    base, trained = (result["readers"][name]["metrics"] for name in ("base", "adapter"))
    assert base["n"] == trained["n"] == 20 and trained["cer"] < base["cer"]
    assert result["differences"]["adapter"]["cer"] == pytest.approx(trained["cer"] - base["cer"])
    assert {"by_script", "by_length", "confusions", "worst"} <= set(result["readers"]["adapter"])
    assert (tmp_path / "report.html").is_file()
    before = (adapter / "report.html").stat().st_mtime_ns
    load_recipe("report").main(parse_recipe(ReportArguments, [str(adapter)], None))
    assert (adapter / "report.html").stat().st_mtime_ns > before


def test_evaluations_bad_inputs(adapter, held_out, tmp_path, monkeypatch):
    for name in ("no_text", "images", "empty"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (60, 20)).save(tmp_path / "images" / "a.png")
    (tmp_path / "no_text" / "metadata.jsonl").write_text('{"image": "a.png"}\n', encoding="utf-8")
    other, processor = build_tiny_model("v1", seed=3)
    other.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    v2, processor = build_tiny_model("v2")
    v2.save_pretrained(tmp_path / "v2")
    processor.save_pretrained(tmp_path / "v2")
    monkeypatch.setattr("dsocr.reading.baselines.find_spec", lambda name: None)
    good = ["--dataset_name", held_out, "--max_eval_samples", 4]
    for argv, words in (
        ([], "recipes/transcribe.py"),
        (["--dataset_name", tmp_path / "no_text"], "recipes/transcribe.py"),
        (["--dataset_name", tmp_path / "images"], "recipes/transcribe.py"),
        (["--dataset_name", tmp_path / "empty"], "recipes/transcribe.py"),
        ([*good, "--adapter", adapter, "--model_name_or_path", tmp_path / "other"], "does not fit|another base"),
        ([*good, "--adapter", adapter, "--model_name_or_path", tmp_path / "v2"], "does not fit|another base"),
        ([*good, "--adapter", tmp_path / "empty"], "does not say what its base model is"),
        ([*good, "--baseline", "tesseract"], "pip install pytesseract"),
        ([*good, "--baseline", "rapidocr"], "pip install rapidocr"),
        ([*good, "--baseline", "magic"], "not one of tesseract, rapidocr"),
    ):
        with pytest.raises(SystemExit) as stop:
            evaluate(*argv, "--output_dir", tmp_path / "out")
        assert stop.value.code == 1
        assert re.search(words, (tmp_path / "out" / "run.log").read_text(encoding="utf-8")), words
        (tmp_path / "out" / "run.log").write_text("", encoding="utf-8")


def test_a_folder_that_cannot_be_written_is_said(adapter, held_out, tmp_path, capsys):
    """A file where the folder should be; a read-only folder gives the same error class, but not to root."""
    (tmp_path / "taken").write_text("x")
    with pytest.raises(SystemExit) as stop:
        evaluate("--adapter", adapter, "--dataset_name", held_out, "--output_dir", tmp_path / "taken" / "deep")
    assert stop.value.code == 1
    assert "cannot write" in capsys.readouterr().out


def test_a_baseline_stands_in_the_same_table(adapter, held_out, tmp_path, monkeypatch):
    recipe = load_recipe("evaluate")
    monkeypatch.setattr(
        recipe, "load_baseline", lambda word: Baseline("tesseract", "eng", lambda image: f"{image.width}")
    )
    argv = ["--dataset_name", held_out, "--max_eval_samples", 6, "--output_dir", tmp_path, "--baseline", "tesseract"]
    argv += ["--adapter", adapter, "--max_new_tokens", 16]
    recipe.main(parse_recipe(EvaluateArguments, [*map(str, argv)], None))
    result = json.loads((tmp_path / "evaluation.json").read_text(encoding="utf-8"))
    assert set(result["readers"]) == {"base", "adapter", "tesseract"}
    assert set(result["differences"]) == {"adapter", "tesseract"}
    assert (tmp_path / "predictions_tesseract.jsonl").is_file()


def test_transcribe_correct_retrain(adapter, held_out, tmp_path, monkeypatch):
    """The circle: read new lines, correct the review, train on it."""
    files = sorted((held_out / "images").glob("*.png"))[:8]
    (tmp_path / "scans").mkdir()
    for path in files:
        Image.open(path).save(tmp_path / "scans" / path.name)
    (tmp_path / "scans" / "broken.png").write_bytes(b"x")
    out = tmp_path / "out.jsonl"
    review = tmp_path / "review" / "review.html"
    argv = [
        "--adapter",
        adapter,
        "--inputs",
        tmp_path / "scans",
        "--format",
        "jsonl",
        "--output",
        out,
        "--review",
        review,
    ]
    assert transcribe_files(*argv, "--max_new_tokens", 24) == 1, "a broken file shows in the exit code"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [os.path.basename(row["image"]) for row in rows] == [path.name for path in files]
    model, processor, _ = load_reader(None, str(adapter))
    expected = transcribe(
        model, processor, [str(path) for path in files], ReadingOptions(max_new_tokens=24, progress=False)
    )
    assert [row["text"] for row in rows] == expected

    table = review.with_suffix(".csv")
    dataset = load_ocr_dataset(table, on_bad_sample="skip", progress=False)
    assert len(dataset) == 8 - sum(not text for text in expected)
    lines = table.read_text(encoding="utf-8").splitlines()
    confidences = [float(line.split(",")[-3]) for line in lines[1:] if line.count(",") == 4]
    assert confidences == sorted(confidences)
    corrected = [lines[0]] + [line.split(",")[0] + ",corrected," + ",".join(line.split(",")[-3:]) for line in lines[1:]]
    table.write_text("\n".join(corrected) + "\n", encoding="utf-8")
    assert set(load_ocr_dataset(table, progress=False)["text"]) == {"corrected"}

    sft = load_recipe("sft_lora")
    monkeypatch.setattr(sys, "argv", ["sft_lora.py"])
    few = ["--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    few += ["--disable_tqdm", "true", "--max_new_tokens", "8", "--validation_fraction", "0.3"]
    sft.run(["--dataset_name", str(table), "--output_dir", str(tmp_path / "again"), *few])
    assert (tmp_path / "again" / "report.html").is_file()


@pytest.mark.slow
def test_text_goes_to_the_console_and_everything_else_beside_it(adapter, held_out):
    image = sorted((held_out / "images").glob("*.png"))[0]
    ended = start_recipe("transcribe", "--adapter", adapter, "--inputs", "-", input=f"{image}\n")
    assert ended.returncode == 0
    assert len(ended.stdout.splitlines()) == 1 and "INFO" not in ended.stdout
    assert "1 lines of 1 images read" in ended.stderr
    nothing = start_recipe("transcribe", "--inputs", "gone/*.png")
    assert nothing.returncode == 1 and "there is no such file" in nothing.stderr and "Traceback" not in nothing.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_keeps_what_was_read(adapter, held_out, tmp_path):
    out = tmp_path / "out.txt"
    files = [str(path) for path in sorted((held_out / "images").glob("*.png"))] * 40
    copies = tmp_path / "scans"
    copies.mkdir()
    for number, path in enumerate(files[:2000]):
        os.link(path, copies / f"{number:05d}.png")
    command = [sys.executable, str(REPOSITORY / "recipes" / "transcribe.py"), "--adapter", str(adapter)]
    command += ["--inputs", str(copies), "--output", str(out), "--per_device_eval_batch_size", "4"]
    # A shell's background job, and what it starts, ignores Ctrl-C.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    part = out.with_name(f"{out.name}.part")
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors and "Traceback" not in errors
    # A complete result has the name that was asked for; this one is not complete.
    assert 0 < len(part.read_text(encoding="utf-8").splitlines()) < 4000 and not out.exists()


def merge(*argv, adapter):
    with explained():
        load_recipe("merge").main(parse_recipe(MergeArguments, [str(adapter), *map(str, argv)], None))


def test_merging_through_the_recipe(adapter, tmp_path, capsys):
    merge("--output_dir", tmp_path / "merged", adapter=adapter)
    shown = capsys.readouterr().out
    assert "every weight came back" in shown and "merged model in" in shown
    merged, processor, _ = load_reader(str(tmp_path / "merged"), None)
    adapted = load_adapter(load_model(str(adapter / "base_model"), dtype="float32"), adapter)
    # What was written is the fp32 sum, rounded once.
    adapted = adapted.merge_and_unload().to(torch.bfloat16).float()
    images = [str(path) for path in sorted((adapter / "demo_data/test/images").glob("*.png"))[:6]]
    options = {"max_new_tokens": 24, "progress": False}
    assert transcribe(merged, processor, images, ReadingOptions(**options)) == transcribe(
        adapted, OcrProcessor.from_pretrained(adapter), images, ReadingOptions(**options)
    )
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (adapter / "base_model" / name).read_bytes(), name
    assert (tmp_path / "merged" / "processor_config.json").is_file()
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert card.data.library_name == "transformers"
    # The demonstration's LoRA on CLIP has no form in upstream's names.
    with pytest.raises(SystemExit):
        merge("--output_dir", tmp_path / "exported", "--adapter_only", adapter=adapter)
    assert "Merge the adapter instead" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        merge("--output_dir", tmp_path / "x", "--push_to_hub", adapter=adapter)
    assert stop.value.code == 2 and "--hub_model_id" in capsys.readouterr().err


def test_the_runs_model_card_has_what_the_hub_reads(adapter):
    card = ModelCard.load(adapter / "README.md")
    results = json.loads((adapter / "ocr_results.json").read_text(encoding="utf-8"))
    assert (
        card.data.library_name == "peft" and card.data.license == "other" and card.data.pipeline_tag == "image-to-text"
    )
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert measured == {"cer": round(results["adapter"]["cer"], 4), "wer": round(results["adapter"]["wer"], 4)}
    assert "base_model" not in yaml.safe_load(card.data.to_yaml()), "a local path is no Hub id"
    for words in (
        "dsocr.load_adapter",
        "gundam",
        "Free OCR.",
        f"{results['adapter']['cer']:.3f}",
        "240 transcribed lines",
    ):
        assert words in card.text
    code = card.text.split("```python")[1].split("```")[0]
    compile(code, "card", "exec")
    assert len([line for line in code.splitlines() if line.strip()]) <= 7


def test_a_card_names_a_base_of_the_hub(tmp_path):
    results = {
        "base_model_name_or_path": "deepseek-ai/DeepSeek-OCR",
        "revision": "abc",
        "image_mode": "base",
        "prompt": "p",
    }
    card = ModelCard.load(write_model_card(tmp_path / ".", results))
    assert card.data.base_model == "deepseek-ai/DeepSeek-OCR" and "lora" in card.data.tags
    assert "Not measured." in card.text


def test_an_adapters_base_is_found_beside_it(adapter, tmp_path):
    assert find_base(adapter)[0].endswith("base_model")
    with pytest.raises(ValueError, match="does not say what its base model is"):
        find_base(tmp_path)


def test_nothing_is_uploaded_unless_asked_and_then_privately(adapter, tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, name, **options):
            calls.append((name, options))

        def upload_folder(self, **options):
            calls.append(options)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    recipe = load_recipe("merge")
    argv = [str(adapter), "--output_dir", str(tmp_path / "merged")]
    recipe.main(parse_recipe(MergeArguments, argv, None))
    assert calls == []
    recipe.main(parse_recipe(MergeArguments, [*argv, "--push_to_hub", "--hub_model_id", "me/mine"], None))
    assert calls[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert calls[1]["repo_id"] == "me/mine" and str(calls[1]["folder_path"]) == str(tmp_path / "merged")
