"""`predictions.jsonl`: predictions appended line by line, so that a second start continues after the last one."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class PredictionFileError(ValueError):
    """The file belongs to another evaluation, or is damaged in the middle."""


class PredictionFile:
    """Predictions of one model on one dataset.

    The first line holds the settings. A truncated last line (a crash, a full disk) is dropped and predicted again; where
    no line is whole, the file begins anew.

    Args:
        path: The file; it is created.
        settings: Everything that decides the predictions (model, adapter, prompt, dataset, ...).

    Raises:
        PredictionFileError: when the file was written with other settings.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any]):
        self.path = Path(path)
        self.rows: dict[int, dict[str, Any]] = {}
        # Convert through JSON: tuples become lists and compare equal to the loaded settings.
        settings = json.loads(json.dumps(settings))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            self._read(settings)
        if not self.path.is_file() or not self.path.stat().st_size:
            self._append({"settings": settings})

    def _read(self, settings: dict[str, Any]) -> None:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.path, len(whole))
        if not whole:
            return
        try:
            entries = [json.loads(line) for line in whole.decode("utf-8").split("\n")[:-1]]
        except ValueError as error:
            raise PredictionFileError(f"{self.path} is damaged ({error}); delete it to start again.") from error
        found = entries[0].get("settings")
        if found != settings:
            changed = sorted(key for key in settings if (found or {}).get(key) != settings[key])
            raise PredictionFileError(
                f"{self.path} was written with other settings ({', '.join(changed) or 'unknown'} differ); give another "
                "--output_dir, or delete the file."
            )
        self.rows = {entry["index"]: entry for entry in entries[1:]}

    def _append(self, entry: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def add(self, index: int, *, reference: str, prediction: str, confidence: float | None = None) -> None:
        """Append one prediction."""
        entry: dict[str, Any] = {"index": index, "reference": reference, "prediction": prediction}
        if confidence is not None:
            entry["confidence"] = confidence
        self._append(entry)
        self.rows[index] = entry

    def missing(self, indices: Iterable[int]) -> list[int]:
        """Indices without a prediction, in order."""
        return [index for index in indices if index not in self.rows]
