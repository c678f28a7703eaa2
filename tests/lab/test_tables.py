"""Results of measurements, and the pages that show them."""

import pytest
import torch
from helpers.paths import REPOSITORY

from dsocr.lab.memory import PRECISIONS
from dsocr.lab.tables import build_section, fill_page, save_result


DOCS = REPOSITORY / "docs"


@pytest.mark.parametrize("kind", ["speed", "memory"])
def test_a_page_holds_what_was_measured(kind):
    section = build_section(DOCS, kind)
    assert section.count("\n| ") >= 4
    page = (DOCS / f"{kind}.md").read_text(encoding="utf-8")
    assert f"<!-- {kind} table -->\n{section}\n<!-- end of {kind} table -->" in page


def result(**changes):
    step = {"version": "v1", "size": "tiny", "dtype": "float32", "image_mode": "base", "batch_size": 1}
    step |= {"answer_tokens": 1, "repeats": 1, "checkpointing": False}
    data = {"decode_ms": 1.0, "resize_ms": 1.0, "rest_ms": 1.0}
    return {"hardware": "old machine", "step": step | changes, "data": data}


def test_a_result_takes_the_place_of_an_earlier_one_of_the_same_model(tmp_path):
    save_result(tmp_path / "made", "speed", result())
    save_result(tmp_path / "made", "speed", result(size="mid") | {"hardware": "other size"})
    save_result(tmp_path / "made", "speed", result(repeats=3) | {"hardware": "new machine"})
    section = build_section(tmp_path / "made", "speed")
    assert "old machine" not in section
    assert section.index("new machine") < section.index("other size"), "the order of the tables stays"


def test_a_page_without_marks_is_refused(tmp_path):
    (tmp_path / "speed.md").write_text("no marks")
    with pytest.raises(ValueError, match="speed table"):
        fill_page(tmp_path, "speed")


def test_both_devices_share_a_table_of_memory(tmp_path, monkeypatch):
    row = {"weights_bytes": 2e9, "loading_peak_bytes": 3e9, "step_peak_bytes": 4e9, "cer": 0.5}
    for on_gpu, seconds in ((False, 8.0), (True, 1.0)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda on_gpu=on_gpu: on_gpu)
        rows = {name: row | {"seconds": seconds if name == "bf16" else 2 * seconds} for name in PRECISIONS}
        save_result(tmp_path, "memory", result() | {"rows": rows, "hardware": "a GPU" if on_gpu else "a CPU"})
    section = build_section(tmp_path, "memory")
    filled = "3.00 GB | 4.00 GB | 0.50"
    assert f"| 4 bit here | 2.00 GB | {filled} | {filled} | 0.500 |" in section
    assert "a CPU; v1 tiny size" in section and "a GPU; v1 tiny size" in section
