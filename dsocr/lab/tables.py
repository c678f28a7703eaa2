"""What a benchmark found: JSON for programs, a table for people, and the README's copy of it."""

import json
from pathlib import Path
from typing import Any

from dsocr.lab.levers import ALL, LEVERS, PLAIN


MARK = "speed table"
NAMES = {PLAIN: "plain: native classes, PEFT, TRL", **LEVERS, ALL: "all together"}
DEVICES = ("cpu", "gpu")


def results_path(folder: str | Path, device: str) -> Path:
    """Where the figures of a kind of device are kept."""
    return Path(folder) / f"speed_{device}.json"


def format_step(step: dict[str, Any]) -> str:
    """What was measured, in words."""
    tiles = f"{step['tiles']} tiles, " if step["tiles"] else ""
    packed = "in 4 bit, " if step["load_in_4bit"] else ""
    checkpointing = "checkpointing" if step["checkpointing"] else "no checkpointing"
    return (
        f"{step['version']} {step['size']} size, random weights, {packed}{step['dtype']}, image mode {step['image_mode']}, "
        f"{tiles}batch {step['batch_size']}, {step['answer_tokens']} answer tokens, LoRA r 16, {checkpointing}, median of "
        f"{step['repeats']} interleaved rounds"
    )


def training_table(rows: dict[str, dict]) -> list[str]:
    """Markdown lines: samples/s as a ratio to the plain path, seconds by part, memory, share of the matrix rate."""
    lines = [
        "| path | samples/s, ratio | vision s | language s | backward s | memory | MFU | loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        s = row["seconds"]
        lines.append(
            f"| {NAMES[name]} | {row['ratio']:.2f} | {s['vision']:.3g} | {s['language_forward']:.3g} | {s['backward']:.3g} "
            f"| {row['peak_bytes'] / 1e9:.2f} GB | {row['mfu']:.0%} | {row['loss']:.4f} |"
        )
    return lines


def reading_line(reading: dict[str, float]) -> str:
    """One sentence about generation."""
    return (
        f"Reading by generation ({reading['new_tokens']} tokens a line): {reading['ratio']:.2f} times the lines/s with kept "
        f"features; vision is {reading['vision_share']:.0%} of a plain reading, so at most {reading['bound']:.2f} times."
    )


def data_line(data: dict[str, float]) -> str:
    """One sentence about the data loader."""
    return (
        f"A worker takes {data['decode_ms']:.1f} ms to decode a line, {data['resize_ms']:.1f} ms to cut it into views and "
        f"{data['rest_ms']:.1f} ms for the rest (one core)."
    )


def growth_table(rows: list[dict]) -> list[str]:
    """Markdown lines: one thing grown at a time, with all levers."""
    lines = ["| grown | value | samples/s | memory |", "|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['grown']} | {row['value']} | {row['samples_per_second']:.3g} | {row['peak_bytes'] / 1e9:.3g} GB |"
        )
    return lines


def describe(result: dict[str, Any]) -> list[str]:
    """All of one result as Markdown."""
    lines = [f"{result['hardware']}; {format_step(result['step'])}.", "", *training_table(result["training"])]
    if result.get("data"):
        lines += ["", data_line(result["data"])]
    if result.get("reading"):
        lines += ["", reading_line(result["reading"])]
    if result.get("loading"):
        loading = result["loading"]
        lines += [
            "",
            f"Loading: {loading['ratio']:.2f} times the pure read of the same files ({loading['gigabytes']:.2f} GB).",
        ]
    if result.get("growth"):
        lines += ["", *growth_table(result["growth"])]
    return lines


def write_result(folder: str | Path, device: str, result: dict[str, Any]) -> Path:
    """Add a result to the file of a kind of device, in the place of an earlier one of the same step."""
    path = results_path(folder, device)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    kept = [other for other in known if other["step"] != result["step"]]
    path.write_text(json.dumps([*kept, result], indent=1) + "\n", encoding="utf-8")
    return path


def build_section(folder: str | Path) -> str:
    """Markdown of everything that was measured on any kind of device."""
    parts = []
    for device in DEVICES:
        path = results_path(folder, device)
        if path.is_file():
            parts += ["\n".join(describe(result)) for result in json.loads(path.read_text(encoding="utf-8"))]
    return "\n\n".join(parts)


def update_readme(readme: str | Path, folder: str | Path) -> None:
    """Rewrite the section between its two marks.

    Raises:
        ValueError: when the marks are not there.
    """
    replace_between(readme, MARK, build_section(folder))


def replace_between(path: str | Path, mark: str, text: str) -> None:
    """Put a text between `<!-- mark -->` and `<!-- end of mark -->`.

    Raises:
        ValueError: when the marks are not there.
    """
    path = Path(path)
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    content = path.read_text(encoding="utf-8")
    if begin not in content or end not in content:
        raise ValueError(f"{path} has no {begin} ... {end}.")
    before, rest = content.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
