"""Results of measurements: a JSON file for each kind of device, and the tables of docs/speed.md and docs/memory.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsocr.common.files import load_json, replace_between, write_json
from dsocr.lab.levers import ALL, LEVERS, PLAIN
from dsocr.lab.memory import PRECISIONS


DEVICES = ("cpu", "gpu")
_PATH_TITLES = {PLAIN: "plain: native classes, PEFT, TRL", **LEVERS, ALL: "all together"}


def save_result(folder: str | Path, kind: str, result: dict[str, Any]) -> Path:
    """Add a result to the file of this machine's kind of device, in the place of an earlier one of the same model.

    Args:
        folder: Folder of the file; it is made.
        kind: `"speed"` or `"memory"`.
        result: `hardware`, `machine`, `step` (with `version` and `size`, which tell the models apart) and the figures.

    Returns:
        The file, for instance `docs/speed_cpu.json`.
    """
    device = "gpu" if torch.cuda.is_available() else "cpu"
    path = Path(folder) / f"{kind}_{device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A dictionary keeps the place of a key whose value is replaced, so the order of the tables stays.
    results = {_model_of(known): known for known in load_json(path, default=[], kind=list)}
    results[_model_of(result)] = result
    return write_json(path, list(results.values()))


def fill_page(folder: str | Path, kind: str) -> Path:
    """Rewrite the tables between the two marks of `speed.md` or `memory.md`, from the results in the same folder.

    Raises:
        FileNotFoundError: the folder has no such page.
        ValueError: the page has no marks.
    """
    page = Path(folder) / f"{kind}.md"
    if not page.is_file():
        raise FileNotFoundError(f"{page} does not exist; --docs names the folder of that page, for instance docs.")
    replace_between(page, f"{kind} table", build_section(folder, kind))
    return page


def build_section(folder: str | Path, kind: str) -> str:
    """Markdown of every result of a kind, `"speed"` or `"memory"`, in a folder."""
    results = {device: load_json(Path(folder) / f"{kind}_{device}.json", default=[], kind=list) for device in DEVICES}
    if kind == "speed":
        return "\n\n".join(describe_speed(result) for device in DEVICES for result in results[device])
    models = dict.fromkeys(_model_of(result) for device in DEVICES for result in results[device])
    by_model = [
        {device: result for device in DEVICES for result in results[device] if _model_of(result) == model}
        for model in models
    ]
    return "\n\n".join(describe_memory(measured) for measured in by_model)


def _model_of(result: dict[str, Any]) -> tuple[str, str]:
    return result["step"]["version"], result["step"]["size"]


def _describe_step(result: dict[str, Any]) -> str:
    step = result["step"]
    return (
        f"{result['hardware']}; {step['version']} {step['size']} size, random weights, {step['dtype']}, image mode "
        f"{step['image_mode']}, batch {step['batch_size']}, {step['answer_tokens']} answer tokens, LoRA r 16, "
        f"{'checkpointing' if step['checkpointing'] else 'no checkpointing'}, median of {step['repeats']}"
    )


def _table(columns: list[str], rows: list[list[Any]]) -> str:
    head, *body = ["| " + " | ".join(map(str, line)) + " |" for line in (columns, *rows)]
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def describe_speed(result: dict[str, Any]) -> str:
    """Markdown of one benchmark: a table of the training step, a sentence on each other part, a table of growth."""
    parts = [f"{_describe_step(result)} interleaved rounds."]
    writers: dict[str, Callable[[Any], str]] = {
        "training": _training_table,
        "data": _data_line,
        "reading": _reading_line,
        "loading": _loading_line,
        "growth": _growth_table,
    }
    parts += [write(result[part]) for part, write in writers.items() if part in result]
    return "\n\n".join(parts)


def _training_table(rows: dict[str, dict]) -> str:
    columns = ["path", "samples/s, ratio", "vision s", "language s", "backward s", "memory", "MFU", "loss"]
    cells = []
    for name, row in rows.items():
        seconds = [f"{row['seconds'][part]:.3g}" for part in ("vision", "language_forward", "backward")]
        memory, mfu, loss = _size(row["peak_bytes"]), f"{row['mfu']:.0%}", f"{row['loss']:.4f}"
        cells.append([_PATH_TITLES[name], f"{row['ratio']:.2f}", *seconds, memory, mfu, loss])
    return _table(columns, cells)


def _data_line(data: dict[str, float]) -> str:
    return (
        f"A worker takes {data['decode_ms']:.1f} ms to decode a line, {data['resize_ms']:.1f} ms to cut it into views and "
        f"{data['rest_ms']:.1f} ms for the rest (one core)."
    )


def _reading_line(reading: dict[str, float]) -> str:
    return (
        f"Reading by generation ({reading['new_tokens']} tokens a line): {reading['ratio']:.2f} times the lines/s with kept "
        f"features; vision is {reading['vision_share']:.0%} of a plain reading, so at most {reading['bound']:.2f} times."
    )


def _loading_line(loading: dict[str, float]) -> str:
    return f"Loading: {loading['ratio']:.2f} times the pure read of the same files ({loading['gigabytes']:.2f} GB)."


def _growth_table(rows: list[dict]) -> str:
    cells = [
        [row["grown"], row["value"], f"{row['samples_per_second']:.3g}", f"{row['peak_bytes'] / 1e9:.3g} GB"]
        for row in rows
    ]
    return _table(["grown", "value", "samples/s", "memory"], cells)


def describe_memory(measured: dict[str, dict[str, Any]]) -> str:
    """Markdown of one model's memory.

    Args:
        measured: By kind of device, `"cpu"` and `"gpu"`; cells of a device that is absent stay empty.
    """
    columns = ["precision", "weights"]
    for device in DEVICES:
        columns += [f"{figure}, {device.upper()}" for figure in ("loading", "step", "speed")]
    cells = []
    for name, precision in PRECISIONS.items():
        # Weights and error rate are the same on every device.
        first = next(iter(measured.values()))["rows"][name]
        cells.append([precision.title, _size(first["weights_bytes"])])
        for device in DEVICES:
            cells[-1] += _memory_cells(measured[device]["rows"], name) if device in measured else ["", "", ""]
        cells[-1].append(f"{first['cer']:.3f}")
    notes = [f"{_describe_step(result)} steps." for result in measured.values()]
    return "\n\n".join([_table([*columns, "CER"], cells), *notes])


def _memory_cells(rows: dict[str, dict], name: str) -> list[str]:
    row = rows[name]
    speed = rows["bf16"]["seconds"] / row["seconds"]
    return [_size(row["loading_peak_bytes"]), _size(row["step_peak_bytes"]), f"{speed:.2f}"]


def _size(size: int) -> str:
    # In GB the tiny model's figures would all be zero.
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
