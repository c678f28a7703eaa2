"""The table of measured memory: from JSON files to Markdown, one file per kind of device."""

import json
from pathlib import Path

from dsocr.lab.memory import VARIANTS
from dsocr.lab.tables import replace_between


DEVICES = ("cpu", "gpu")
_MARK = "memory table"


def results_path(folder: str | Path, device: str) -> Path:
    """Where the measurements of a kind of device are kept."""
    return Path(folder) / f"memory_{device}.json"


def _size(row: dict, key: str) -> str:
    return f"{row[key] / 1e9:.2f} GB" if row.get(key) else ""


def _speed(rows: dict[str, dict], variant: str) -> str:
    if variant not in rows:
        return ""
    return f"{rows['bf16']['seconds'] / rows[variant]['seconds']:.2f}" if "bf16" in rows else ""


def build_table(folder: str | Path) -> str:
    """Markdown; cells of a device that nobody has measured stay empty."""
    measured = {}
    for device in DEVICES:
        path = results_path(folder, device)
        measured[device] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"rows": {}}
    lines = [
        "| precision | weights | loading, CPU | step, CPU | speed, CPU | loading, GPU | step, GPU | speed, GPU | CER |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for variant, name in VARIANTS.items():
        cells = []
        for device in DEVICES:
            rows = measured[device]["rows"]
            row = rows.get(variant, {})
            cells += [_size(row, "loading_peak_bytes"), _size(row, "step_peak_bytes"), _speed(rows, variant)]
        rows = [measured[device]["rows"].get(variant, {}) for device in DEVICES]
        weights = next((_size(row, "weights_bytes") for row in rows if row), "")
        cer = next((f"{row['cer']:.3f}" for row in rows if "cer" in row), "")
        lines.append("| " + " | ".join([name, weights, *cells, cer]) + " |")
    for device in DEVICES:
        if "hardware" in measured[device]:
            lines += ["", f"{measured[device]['hardware']}; {measured[device]['step']}."]
    return "\n".join(lines)


def update_readme(readme: str | Path, folder: str | Path) -> None:
    """Rewrite the table between its two marks in a Markdown file.

    Raises:
        ValueError: when the marks are not there.
    """
    replace_between(readme, _MARK, build_table(folder))
