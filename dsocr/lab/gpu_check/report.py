"""What the check prints, and the figures of it that belong into docs/speed.md and docs/memory.md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsocr.lab.gpu_check.quantized import EXPERTS_TITLE
from dsocr.lab.gpu_check.setup import FAILED, NOT_HERE, CheckSetup
from dsocr.lab.gpu_check.steps import DONE, StepResult
from dsocr.lab.memory import IMAGE_MODE, PRECISIONS, STEPS, memory_step
from dsocr.lab.tables import fill_page, save_result
from dsocr.lab.training_speed import IMAGE_MODE as SPEED_MODE
from dsocr.lab.training_speed import benchmark_step


def _format(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{name.removesuffix('_bytes').replace('_', ' ')} {value / 1e9:.3g} GB"
    shown = f"{value:.4g}" if isinstance(value, float) else str(value)
    return f"{name.replace('_', ' ')} {shown}"


def _describe_row(row: dict[str, Any]) -> str:
    if NOT_HERE in row:
        return f"not on this device: {row[NOT_HERE]}"
    if FAILED in row:
        return f"FAILED: {row[FAILED]}"
    return ", ".join(
        _format(name, value) for name, value in row.items() if value is not None and not isinstance(value, dict)
    )


def describe_check(result: dict[str, Any]) -> Iterator[str]:
    """The whole check as lines: a heading for every step, a line for every measurement."""
    for name, step in result["steps"].items():
        reason = f": {step['reason']}" if step["reason"] else ""
        yield f"{step['title']} ({name}): {step['status']}, {step['seconds']:.1f} s{reason}"
        width = max(map(len, step["rows"]), default=0)
        yield from (f"  {row:<{width}}  {_describe_row(figures)}" for row, figures in step["rows"].items())


def summarize(setup: CheckSetup, machine: dict[str, str], steps: dict[str, StepResult]) -> dict[str, Any]:
    """Everything for gpu_check.json: machine, size, the two steps that the pages describe, and the results."""
    speed = benchmark_step(setup.processor(SPEED_MODE).geometry, setup.size, setup.place)
    memory = memory_step(setup.processor(IMAGE_MODE).geometry)
    return {
        "machine": machine,
        "size": setup.size,
        "version": setup.version,
        "speed_step": speed.to_dict() | {"size": setup.size, "repeats": setup.repeats},
        "memory_step": memory.to_dict() | {"size": setup.size, "repeats": STEPS},
        "steps": {name: step.to_dict() for name, step in steps.items()},
    }


def is_complete(result: dict[str, Any]) -> bool:
    """Whether every step was run and nothing in it failed; what a device has no means for is no failure."""
    steps = result["steps"].values()
    failed = any(FAILED in row for step in steps for row in step["rows"].values())
    return not failed and all(step["status"] == DONE for step in steps)


def _rows(result: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return result["steps"].get(name, {"rows": {}})["rows"]


def _measured(result: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    """Rows of a step that hold figures; none if it was not run."""
    return {title: row for title, row in _rows(result, name).items() if FAILED not in row and NOT_HERE not in row}


def speed_result(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of the check in the form of docs/speed_gpu.json; what was not measured is absent."""
    machine = result["machine"]
    found: dict[str, Any] = {
        "hardware": f"{machine['device']}, torch {machine['torch']}, transformers {machine['transformers']}",
        "machine": machine,
        "step": result["speed_step"],
    }
    levers, batches = _measured(result, "levers"), _rows(result, "batches")
    if "training by path" in levers:
        found |= {key: levers["training by path"][key] for key in ("matrix_rate", "training")}
    if "data loader" in levers:
        found["data"] = levers["data loader"]
    reading = [row for title, row in _measured(result, "reading").items() if "batch" in row and "autocast" not in title]
    if reading:
        found["reading"] = reading[0]
    if batches:
        # Launches and waits were counted apart; they belong into the same row. One that did not fit has its plan alone.
        found["batches"] = [
            row | batches.get(f"launches, {title}", {}) for title, row in batches.items() if "planned_peak_bytes" in row
        ]
    vision = _measured(result, "vision")
    if vision and len(vision) == len(_rows(result, "vision")):
        found["vision"] = vision
    return found


def memory_result(result: dict[str, Any]) -> dict[str, Any]:
    """The figures of the check in the form of docs/memory_gpu.json; what was not measured is absent."""
    machine, measured = result["machine"], _measured(result, "quantized")
    found: dict[str, Any] = {
        "hardware": f"{machine['device']}, torch {machine['torch']}, bitsandbytes {machine['bitsandbytes']}",
        "machine": machine,
        "step": result["memory_step"],
        "rows": {
            name: measured[precision.title] for name, precision in PRECISIONS.items() if precision.title in measured
        },
    }
    if EXPERTS_TITLE in measured:
        found["experts"] = measured[EXPERTS_TITLE]
    cards = [row for row in _rows(result, "cards").values() if "preset" in row]
    if cards:
        found["cards"] = cards
    return found


def fill_docs(folder: str | Path, result: dict[str, Any]) -> list[Path]:
    """Write the figures beside the pages and fill their tables; cells without a figure stay empty.

    Returns:
        The pages.
    """
    save_result(folder, "speed", speed_result(result))
    save_result(folder, "memory", memory_result(result))
    return [fill_page(folder, kind) for kind in ("speed", "memory")]
