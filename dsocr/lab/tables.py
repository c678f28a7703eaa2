"""Results of measurements: a JSON file for each kind of device, and the tables of docs/speed.md and docs/memory.md."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dsocr.common.files import load_json, replace_between, write_json
from dsocr.lab.gpu_check.setup import CARDS, FULL_BATCHES
from dsocr.lab.levers import ALL, LEVERS, PLAIN
from dsocr.lab.memory import PRECISIONS


DEVICES = ("cpu", "gpu")
_BATCHES_TITLE = (
    "Training steps with kept features on the largest images of the mode (`recipes/gpu_check.py`); launches are kernels that "
    "a step starts, waits are those of the program for the GPU."
)
_CARDS_TITLE = "A step of each preset on a GPU that is made as small as the card (`recipes/gpu_check.py`)."
# Rows without a figure, for as long as nobody has measured them.
_UNMEASURED_BATCHES = [{"batch": batch, "checkpointing": checkpointing} for batch, checkpointing in FULL_BATCHES]
_UNMEASURED_CARDS = [{"preset": name, "card_gib": card} for card, names in CARDS.items() for name in names]
_PATH_TITLES = {PLAIN: "plain: native classes, PEFT, TRL", **LEVERS, ALL: "all together"}


def save_result(folder: str | Path, kind: str, result: dict[str, Any]) -> Path:
    """Add a result to the file of this machine's kind of device, in the place of an earlier one of the same model.

    Figures that the earlier one has beyond the new one's stay if both come from the same hardware.

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
    results[_model_of(result)] = _add_to(results.get(_model_of(result), {}), result)
    return write_json(path, list(results.values()))


def _add_to(known: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    """A result with what another recipe measured on the same hardware: gpu_check measures no loading, for instance."""
    if known.get("hardware") != result["hardware"]:
        return result
    together = known | result
    if "rows" in known and "rows" in result:
        names = dict.fromkeys([*known["rows"], *result["rows"]])
        together["rows"] = {name: known["rows"].get(name, {}) | result["rows"].get(name, {}) for name in names}
    return together


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
        parts = [describe_speed(result) for device in DEVICES for result in results[device]]
        if not any("batches" in result for result in results["gpu"]):
            parts += [f"On a GPU, not measured yet. {_BATCHES_TITLE}", _batches_table(_UNMEASURED_BATCHES)]
        return "\n\n".join(parts)
    models = dict.fromkeys(_model_of(result) for device in DEVICES for result in results[device])
    by_model = [
        {device: result for device in DEVICES for result in results[device] if _model_of(result) == model}
        for model in models
    ]
    parts = [describe_memory(measured) for measured in by_model]
    if not any("cards" in result for result in results["gpu"]):
        parts += [f"On a GPU, not measured yet. {_CARDS_TITLE}", _cards_table(_UNMEASURED_CARDS)]
    return "\n\n".join(parts)


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
        "cutting": _cutting_line,
        "experts": _experts_table,
        "reading": _reading_line,
        "loading": _loading_line,
        "growth": _growth_table,
        "batches": lambda rows: f"{_BATCHES_TITLE}\n\n{_batches_table(rows)}",
        "vision": _vision_line,
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


def _cutting_line(cutting: dict[str, dict[str, float]]) -> str:
    shown = (
        f"a {name} line {line['ms']:.0f} ms against {line['plain_ms']:.0f} ms of the plain path ({line['ratio']:.1f} times)"
        for name, line in cutting.items()
    )
    return (
        f"From an opened line of 1600 x 200 pixels to its pixels (v1, gundam, 8 tiles, one thread): {', '.join(shown)}."
    )


def _experts_table(experts: dict[str, dict[str, dict[str, float]]]) -> str:
    title = (
        "One layer of routed experts of the released shape (hidden 1280, expert width 896, 64 experts, 6 a token, 2 shared), "
        "forward and backward with frozen weights, one thread; the rate as a multiple of `grouped_mm`'s, and median seconds:"
    )
    paths = next(iter(experts.values()))
    rows = [
        [path, *(f"{column[path]['ratio']:.2f} ({column[path]['seconds']:.2f} s)" for column in experts.values())]
        for path in paths
    ]
    return f"{title}\n\n{_table(['path', *experts], rows)}"


def _reading_line(reading: dict[str, float]) -> str:
    return (
        f"Reading by generation ({reading['new_tokens']} tokens a line): {reading['ratio']:.2f} times the lines/s with kept "
        f"features; vision is {reading['vision_share']:.0%} of a plain reading, so at most {reading['bound']:.2f} times."
    )


def _loading_line(loading: dict[str, float]) -> str:
    return f"Loading: {loading['ratio']:.2f} times the pure read of the same files ({loading['gigabytes']:.2f} GB)."


def _batches_table(rows: list[dict]) -> str:
    columns = ["batch", "checkpointing", "samples/s", "tokens/s", "MFU", "allocated", "reserved", "planned"]
    cells = [
        [
            row["batch"],
            "yes" if row["checkpointing"] else "no",
            _cell(row, "samples_per_second", "{:.3g}".format),
            _cell(row, "tokens_per_second", "{:.0f}".format),
            _cell(row, "mfu", "{:.0%}".format),
            *(_cell(row, f"{kind}_peak_bytes", _size) for kind in ("allocated", "reserved", "planned")),
            *(_cell(row, kind, str) for kind in ("launches", "waits")),
        ]
        for row in rows
    ]
    return _table([*columns, "launches", "waits"], cells)


def _vision_line(rows: dict[str, dict]) -> str:
    whole, tiles = (rows[f"tower, {kind}"] for kind in ("global views", "tiles"))
    cache = rows["building the cache"]
    return (
        f"The tower sees {whole['views_per_second']:.3g} global views of {whole['side']} pixels or "
        f"{tiles['views_per_second']:.3g} tiles of {tiles['side']} pixels a second; a cache of features is built from image "
        f"files at {cache['images_per_second']:.3g} images/s ({cache['image_tokens']:.0f} image tokens an image)."
    )


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
        found = {device: result["rows"].get(name, {}) for device, result in measured.items()}
        common = {key: value for row in reversed(found.values()) for key, value in row.items()}
        cells.append([precision.title, _cell(common, "weights_bytes", _size)])
        for device in DEVICES:
            cells[-1] += _memory_cells(measured[device]["rows"] if device in measured else {}, name)
        cells[-1].append(_cell(common, "cer", "{:.3f}".format))
    notes = [f"{_describe_step(result)} steps." for result in measured.values()]
    for result in measured.values():
        notes += [_experts_line(result["experts"], result["rows"])] if "experts" in result else []
        notes += [_CARDS_TITLE, _cards_table(result["cards"])] if "cards" in result else []
    return "\n\n".join([_table([*columns, "CER"], cells), *notes])


def _memory_cells(rows: dict[str, dict], name: str) -> list[str]:
    row, first = rows.get(name, {}), rows.get("bf16", {})
    speed = f"{first['seconds'] / row['seconds']:.2f}" if "seconds" in first and "seconds" in row else ""
    return [_cell(row, "loading_peak_bytes", _size), _cell(row, "step_peak_bytes", _size), speed]


def _experts_line(row: dict[str, Any], rows: dict[str, dict]) -> str:
    speed = f" at {rows['bf16']['seconds'] / row['seconds']:.2f} times bf16 LoRA's speed" if "bf16" in rows else ""
    return f"4 bit here with LoRA on the experts too: {_size(row['step_peak_bytes'])}{speed}."


def _cards_table(rows: list[dict]) -> str:
    columns = ["preset", "card", "batch", "samples/s", "allocated", "reserved", "planned"]
    cells = [
        [
            f"`{row['preset']}.yaml`",
            f"{row['card_gib']} GB",
            _cell(row, "batch", str),
            _cell(row, "samples_per_second", "{:.3g}".format),
            *(_cell(row, key, _size) for key in ("peak_bytes", "reserved_peak_bytes", "planned_peak_bytes")),
        ]
        for row in rows
    ]
    return _table(columns, cells)


def _cell(row: dict[str, Any], key: str, form: Callable[[Any], str]) -> str:
    """A figure, or an empty cell where it was not measured."""
    return form(row[key]) if row.get(key) is not None else ""


def _size(size: int) -> str:
    # In GB the tiny model's figures would all be zero.
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"
