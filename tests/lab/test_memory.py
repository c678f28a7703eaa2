"""Measured memory: the recipe at tiny size, and each precision in a process of its own."""

import json

import pytest
import torch
from helpers.recipes import load_recipe

from dsocr.cli.parser import parse_recipe
from dsocr.lab import memory, tables
from dsocr.lab.arguments import MemoryArguments
from dsocr.lab.random_models import sized_config, sized_processor, write_random_checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("left_out", [("bnb", "4bit_vision"), pytest.param((), marks=pytest.mark.slow)])
def test_the_recipe(monkeypatch, tmp_path, left_out):
    recipe = load_recipe("measure_memory")
    precisions = {name: given for name, given in memory.PRECISIONS.items() if name not in left_out}
    for module in (recipe, tables):
        monkeypatch.setattr(module, "PRECISIONS", precisions)
    monkeypatch.setattr(memory, "CER_LINES", 8)
    # In this process: a fresh one takes ten seconds to begin, and the figures are not what is tested here.
    monkeypatch.setattr(recipe, "measure_in_process", memory.measure_precision)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "memory.md").write_text("a\n<!-- memory table -->\n<!-- end of memory table -->\nb\n", encoding="utf-8")
    argv = ["--size", "tiny", "--output_dir", str(tmp_path / "out"), "--docs", str(docs)]
    recipe.main(parse_recipe(MemoryArguments, argv, None))
    device = "gpu" if torch.cuda.is_available() else "cpu"
    (result,) = json.loads((docs / f"memory_{device}.json").read_text(encoding="utf-8"))
    rows = result["rows"]
    assert list(rows) == list(precisions)
    weights = {name: row["weights_bytes"] for name, row in rows.items()}
    assert all(weights[name] < weights["bf16"] for name in set(weights) - {"bf16"})
    assert min(weights, key=weights.get) == ("4bit" if left_out else "4bit_vision")
    for row in rows.values():
        # The plan leaves out bitsandbytes' code tables, which count beside weights as small as these.
        assert row["weights_bytes"] == pytest.approx(row["planned_weights_bytes"], rel=0.1)
        assert row["step_peak_bytes"] == pytest.approx(row["planned_peak_bytes"], rel=0.15)
        assert row["seconds"] > 0 and 0 <= row["cer"] < 0.3
    text = (docs / "memory.md").read_text(encoding="utf-8")
    assert tables.build_section(docs, "memory") in text and text.startswith("a\n") and text.endswith("\nb\n")
    cells = next(line for line in text.splitlines() if line.startswith("| bf16 LoRA")).split("|")
    measured, other = (slice(6, 9), slice(3, 6)) if device == "gpu" else (slice(3, 6), slice(6, 9))
    assert all(cell.strip() for cell in cells[measured])
    assert all(not cell.strip() for cell in cells[other]), "a device that was not measured has empty cells"


def write_tiny(folder):
    options = memory.memory_step(sized_processor("tiny", "v1", "base").geometry)
    return write_random_checkpoint(sized_config("tiny", "v1"), torch.bfloat16, folder), options


@pytest.mark.slow
def test_a_process_of_its_own(tmp_path):
    folder, options = write_tiny(tmp_path / "model")
    row = memory.measure_in_process("bf16", folder, options, None)
    assert row["step_peak_bytes"] == pytest.approx(row["planned_peak_bytes"], rel=0.15)
    with pytest.raises(KeyError, match="fp1"):
        memory.measure_in_process("fp1", folder, options, None)


def test_a_checkpoint_is_written_once_and_not_taken_half_written(tmp_path):
    # What an interrupted run leaves.
    (tmp_path / "model.part").mkdir()
    (tmp_path / "model.part" / "config.json").write_text("{}")
    folder, _ = write_tiny(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (folder / "model.safetensors").is_file()
    before = (folder / "model.safetensors").stat().st_mtime_ns
    write_tiny(folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
