"""One screen on a checkpoint: what it says of a whole one, and of each fault."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from helpers.recipes import load_recipe
from safetensors.torch import load_file, save_file

from dsocr.cli.parser import parse_recipe
from dsocr.cli.tools import VerifyArguments
from dsocr.lab.tiny import build_tiny_model
from dsocr.lab.training_speed import benchmark_step
from dsocr.lab.verification import checking, running
from dsocr.lab.verification.checking import verify_checkpoint
from dsocr.models.checkpoint_files import list_checkpoint_files
from dsocr.models.loading import TINY_BASE


# Names in the file; the model's own names have another beginning.
RENAMED, NEW_NAME = "model.norm.weight", "model.norm.wait"
MISSING, UNEXPECTED = "model.language_model.norm.weight", "model.language_model.norm.wait"


def write_tiny(folder, version="v1"):
    model, processor = build_tiny_model(version)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def rename_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[NEW_NAME] = tensors.pop(RENAMED)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def move_image_token(folder):
    """`<image>` gets another id, as in a tokenizer of another model."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    (added,) = [token for token in content["added_tokens"] if token["content"] == "<image>"]
    content["added_tokens"].insert(content["added_tokens"].index(added), {**added, "content": "<another>"})
    added["id"] += 1
    path.write_text(json.dumps(content), encoding="utf-8")
    return added["id"]


def run(*argv):
    return load_recipe("verify_checkpoint").main(parse_recipe(VerifyArguments, list(map(str, argv)), None))


def test_a_whole_checkpoint_fits_on_one_screen(capsys):
    assert run(TINY_BASE) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " INFO " not in line]
    assert len(lines) <= 40 and max(map(len, lines)) <= 150
    starts = [line[:14].strip() for line in lines]
    facts = dict(zip(starts, (line[14:] for line in lines), strict=True))
    digest = hashlib.sha256((TINY_BASE / "config.json").read_bytes()).hexdigest()
    assert f"sha256 {digest[:16]}" in facts["files"]
    stored = len(load_file(TINY_BASE / "model.safetensors"))
    assert facts["tensors"] == f"{stored} in the files; 0 missing, 0 unexpected, 0 of another shape"
    assert starts.count("token") == 4 and all("as assumed" in line for line in lines if line.startswith("token"))
    assert "ln(vocabulary) 5.787: below chance" in facts["first loss"]
    assert "bfloat16" in facts["autocast"] and "%" in facts["autocast"]
    assert "aten::mm: 8 products" in facts["experts"] and "GiB" in facts["memory"]
    assert float(facts["training"].split()[0]) > 0 and "lines/s expected" in facts["training"]
    assert facts["verdict"] == "this machine will train it"


def test_a_renamed_tensor_and_another_image_token_are_shown(tmp_path, capsys):
    folder = write_tiny(tmp_path)
    rename_tensor(folder)
    identity = move_image_token(folder)
    assert run(folder) == 1
    shown = capsys.readouterr().out
    assert "1 missing, 1 unexpected, 0 of another shape" in shown
    assert f"missing     {MISSING}" in shown and f"unexpected  {UNEXPECTED}" in shown
    assert f"<image> {identity}: THE MODEL EXPECTS {identity - 1}" in shown
    last = shown.splitlines()[-1]
    assert last.startswith("verdict       NO: 1 tensors missing; 1 tensors unexpected; the tokenizer has another id")
    assert "LOAD REPORT" not in shown and "first loss" not in shown and "not run" in shown


def test_a_missing_tensor_alone_stops_it_too(tmp_path):
    folder = write_tiny(tmp_path, "v2")
    rename_tensor(folder)
    report = verify_checkpoint(str(folder))
    assert report.version == "v2" and report.running is None and not report.sound
    assert report.differences == {"missing_keys": [MISSING], "unexpected_keys": [UNEXPECTED]}
    assert all(token.found == token.expected for token in report.tokens)


def test_a_model_worse_than_chance_fails(tmp_path):
    model, processor = build_tiny_model("v1")
    model.lm_head.weight.data.mul_(200)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    report = verify_checkpoint(str(tmp_path))
    assert not report.sound and "NOT below chance" in "\n".join(report.describe())
    with pytest.raises(ValueError, match="--image and --text go together"):
        verify_checkpoint(str(tmp_path), image="x.png")


def test_memory_that_runs_out_in_training_is_part_of_the_verdict(monkeypatch):
    def no_room(model, options):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(running, "TrainingStep", no_room)
    report = verify_checkpoint(str(TINY_BASE))
    assert not report.sound and "recipes/qlora.py needs less" in report.describe()[-1]


def test_files_are_compared_with_what_the_hub_names_them(tmp_path):
    """As huggingface_hub stores a download: the file under its digest, a link to it in the snapshot."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    weights, config = (TINY_BASE / "model.safetensors").read_bytes(), (TINY_BASE / "config.json").read_bytes()
    git = hashlib.sha1(f"blob {len(config)}\0".encode() + config).hexdigest()
    for name, content, digest in (
        ("model.safetensors", weights, hashlib.sha256(weights).hexdigest()),
        ("config.json", config, git),
        ("tokenizer.json", b"{}", "0" * 40),
    ):
        (blobs / digest).write_bytes(content)
        (snapshot / name).symlink_to(Path("../../blobs") / digest)
    found = {file.name: file for file in list_checkpoint_files(snapshot, progress=False)}
    assert found["model.safetensors"].as_sent and found["config.json"].as_sent
    assert found["tokenizer.json"].as_sent is False
    assert found["model.safetensors"].tensors == len(load_file(TINY_BASE / "model.safetensors"))
    assert all(file.as_sent is None for file in list_checkpoint_files(TINY_BASE, progress=False))


def test_a_large_checkpoint_is_not_tried_on_a_cpu_unasked(monkeypatch):
    monkeypatch.setattr(checking, "_LARGE_BYTES", 1000)
    monkeypatch.setattr(checking, "find_unused_gpu", lambda: "this machine has GPU 0: T4, but torch is a CPU build.")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"GPU 0: T4, but torch is a CPU build\. Give --use_cpu"):
        verify_checkpoint(str(TINY_BASE))
    report = verify_checkpoint(str(TINY_BASE), use_cpu=True)
    lines = report.describe()
    assert any(line.startswith("unused card   this machine has GPU 0: T4") for line in lines)
    assert lines[-1].endswith("this machine will train it, on its CPU alone")


@pytest.mark.parametrize("supported", [True, False])
def test_the_benchmark_takes_the_half_type_of_the_card(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: supported)
    geometry = build_tiny_model("v1")[1].geometry
    half = torch.bfloat16 if supported else torch.float16
    assert benchmark_step(geometry, "full", torch.device("cuda")).dtype is half
    assert benchmark_step(geometry, "full", torch.device("cpu")).dtype is torch.bfloat16
