"""Reports: what they say, that they need nothing from outside, and that they can be made again."""

import html.parser
import json
import re
import shutil

import pytest
from PIL import Image

from dsocr.reading.judging import judge, write_judged
from dsocr.reading.metrics import mark_differences
from dsocr.report.hints import suggest_next_steps
from dsocr.report.pages import write_comparison, write_evaluation_report, write_run_report
from dsocr.report.plots import draw_console, draw_curves
from dsocr.report.run_folder import load_run_folder


class _Addresses(html.parser.HTMLParser):
    """Everything a browser would fetch."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.unclosed: list[str] = []

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            fetched_by = name in ("src", "href", "xlink:href", "action", "poster", "srcset")
            if fetched_by and value and not value.startswith(("data:", "#")):
                self.found.append(value)
        if tag in ("link", "iframe", "object", "embed"):
            self.found.append(tag)


def fetched(text: str) -> list[str]:
    parser = _Addresses()
    parser.feed(text)
    return parser.found + re.findall(r"@import|url\(\s*['\"]?(?!#|data:|\))[^)]*\)|fetch\(|XMLHttpRequest", text)


@pytest.fixture
def run(demonstration, tmp_path):
    folder = tmp_path / "my run"
    shutil.copytree(demonstration[0], folder, ignore=shutil.ignore_patterns("demo_data", "checkpoint-*", "base_model"))
    return folder


def test_a_run_ends_with_a_report_that_loads_nothing(run):
    text = (run / "report.html").read_text(encoding="utf-8")
    assert fetched(text) == []
    results = json.loads((run / "ocr_results.json").read_text(encoding="utf-8"))
    for words in (
        f"{results['adapter']['cer']:.3f}",
        "finished",
        "First steps",
        "Next steps",
        "image tokens",
        "adapter, images swapped",
        "keywords dropped by the wrapper",
        "--max_train_samples 240",
        results["machine"]["torch"],
        "&lt;image&gt;\\nFree OCR.",
    ):
        assert words in text, words
    assert text.count("data:image/jpeg;base64,") == 16
    assert text.count("<svg") == 5 + 1, "loss, CER, learning rate, throughput, memory and the console"
    gallery = json.loads((run / "gallery" / "gallery.json").read_text(encoding="utf-8"))
    wrong = [kind for line in gallery for kind, _ in mark_differences(line["reference"], line["after"])]
    card = text[text.index('class="gallery"') :]
    assert card.count('<b class="wrong">') >= wrong.count("replace") > 0
    markdown = (run / "report.md").read_text(encoding="utf-8")
    assert f"| adapter | {results['adapter']['n']} | {results['adapter']['cer']:.3f} |" in markdown


def test_the_first_three_steps_have_loss_time_and_memory(run):
    steps = load_run_folder(run).first_steps
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(step["seconds_per_step"] > 0 and step["peak_memory_gib"] > 0 for step in steps)


def test_a_report_is_made_again_from_the_folder_alone(run):
    before = (run / "report.html").read_bytes()
    write_run_report(run)
    again = (run / "report.html").read_bytes()
    # Only the folder's name differs.
    assert len(again) == pytest.approx(len(before), rel=0.02)
    (run / "ocr_results.json").unlink()
    write_run_report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "not finished (step" in text and "--resume_from_checkpoint" in text


def test_what_is_no_run_or_damaged_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        write_run_report(tmp_path)
    (tmp_path / "ocr_results.json").write_text("{")
    with pytest.raises(ValueError, match="ocr_results.json is damaged"):
        write_run_report(tmp_path)


def test_texts_cannot_break_out_of_the_page(run):
    gallery = run / "gallery" / "gallery.json"
    entries = json.loads(gallery.read_text(encoding="utf-8"))
    entries[0]["after"] = "<script>alert(1)</script>"
    gallery.write_text(json.dumps(entries), encoding="utf-8")
    text = write_run_report(run).read_text(encoding="utf-8")
    assert "<script" not in text
    markdown = (run / "report.md").read_text(encoding="utf-8")
    assert "<script" not in markdown and "&lt;script&gt;" in markdown
    entries[0]["image"] = "../../ocr_results.json"
    gallery.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        write_run_report(run)


def test_several_runs_side_by_side(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    (other / "ocr_results.json").unlink()
    path = write_comparison([run, other], tmp_path / "compared")
    text = path.read_text(encoding="utf-8")
    assert fetched(text) == [] and "my run" in text and "not finished" in text
    assert "| other | not finished" in (tmp_path / "compared" / "comparison.md").read_text(encoding="utf-8")
    same_name = tmp_path / "deep" / "my run"
    shutil.copytree(run, same_name)
    assert str(same_name) in write_comparison([run, same_name], tmp_path).read_text(encoding="utf-8")


def test_an_evaluation_report(tmp_path):
    from datasets import Dataset

    texts = ["Dear sir", "милый дом", "1905"]
    images = [Image.new("RGB", (90, 30), "white")] * 3
    dataset = Dataset.from_dict({"text": texts, "page": ["1", "1", "2"]})
    judged = judge(dataset, {"base": ["Deer sir", "милый дам", "1905"], "adapter": [*texts[:2], "1906"]})
    assert set(judged["readers"]["base"]["by_page"]) == {"1", "2"}
    assert judged["differences"]["adapter"]["cer"] < 0
    write_judged(tmp_path, judged, settings={"dataset": "lines", "model": "m", "image_mode": "base"}, adapter="a")
    text = write_evaluation_report(tmp_path, images).read_text(encoding="utf-8")
    assert fetched(text) == [] and "By script (adapter)" in text and "By page (adapter)" in text
    assert text.count("data:image/jpeg;base64,") == 1, "one line is wrong"
    assert "<td>5</td><td>6</td>" in text and "<td>a (latin)</td>" not in text
    assert "| adapter | 3 |" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_curves_and_console_are_pictures_without_addresses():
    svg = draw_curves({"a": [(1, 2.0), (2, 1.0)], "b": [(1, 3.0)], "empty": []}, "loss")
    assert svg.startswith("<svg") and fetched(svg) == []
    assert draw_curves({"a": []}, "loss") == ""
    console = draw_console(["12:00:00 INFO step 1/3: loss 2.5", "[bold]<not markup>[/bold]"], "my run")
    assert "font-face" not in console and fetched(console) == []
    assert "[bold]" in console and "&lt;not" in console


def metrics(cer, low=None, high=None, n=500, **rates):
    return {
        "cer": cer,
        "cer_low": cer - 0.01 if low is None else low,
        "cer_high": cer + 0.01 if high is None else high,
    } | {
        "n": n,
        "looping": 0.0,
        "empty": 0.0,
        **rates,
    }


GOOD = {"base": metrics(0.5), "adapter": metrics(0.1), "shuffled": metrics(1.1), "train_sample": metrics(0.08)}


@pytest.mark.parametrize(
    ("losses", "cers", "changes", "words"),
    [
        ([2.0] * 20, [0.1], {}, "Nothing stands out"),
        ([3 - 0.1 * i for i in range(20)], [0.1], {}, "still falls"),
        ([2.0] * 20, [0.3, 0.2, 0.1], {}, "still falls"),
        ([2.0] * 20, [0.3, 0.1, 0.2], {}, "train shorter"),
        ([2.0] * 20, [0.1], {"train_sample": metrics(0.01)}, "more lines will help"),
        ([2.0] * 20, [0.1], {"shuffled": metrics(0.1, 0.08, 0.12)}, "does not read these images"),
        ([2.0] * 20, [0.1], {"adapter": metrics(0.6), "train_sample": metrics(0.5)}, "worse than the base"),
        ([2.0] * 20, [0.1], {"adapter": metrics(0.1, looping=0.05)}, "5.0% of the outputs end in a loop"),
        ([2.0] * 20, [0.1], {"adapter": metrics(0.1, empty=0.05)}, "are empty"),
        (
            [2.0] * 20,
            [0.1],
            {"adapter": metrics(0.1, 0.02, 0.3, n=20)},
            "20 held-out lines leave an interval 0.280 wide",
        ),
        ([2.0] * 20, [0.1], {"train_lines": 60}, "60 lines to train on are few"),
        ([2.0] * 20, [0.1], {"base": metrics(0.105)}, "no improvement is shown"),
    ],
)
def test_hints_follow_from_the_figures(losses, cers, changes, words):
    hints = suggest_next_steps(losses, cers, **{**GOOD, "train_lines": 5000, **changes})
    assert any(words in hint for hint in hints), hints
    if words != "Nothing stands out":
        assert len(hints) == 1, hints
