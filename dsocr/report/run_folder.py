"""Load the files of a run folder for its report."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dsocr.common.files import load_json
from dsocr.common.run_files import (
    CHECKPOINT_PATTERN,
    DATA_SUMMARY_NAME,
    GALLERY_FOLDER,
    GALLERY_INDEX,
    LOG_NAME,
    RESULTS_NAME,
    TRAINER_STATE_NAME,
)


CURVES = {
    "loss": "loss",
    "eval_cer": "CER",
    "learning_rate": "learning rate",
    "samples_per_second": "samples/s",
    "peak_memory_gib": "peak memory, GiB",
}


@dataclass
class RunFolder:
    """A run's files.

    Attributes:
        path: The folder.
        results: `ocr_results.json`, empty for an unfinished run.
        history: Trainer's log history.
        log: Lines of `run.log`.
        gallery: Entries of `gallery/gallery.json`.
        data: `data_summary.json`.
    """

    path: Path
    results: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    gallery: list[dict[str, str]] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        """`finished`, or the last logged step."""
        if self.results:
            return "finished"
        steps = [entry["step"] for entry in self.history if "step" in entry]
        return f"not finished (step {max(steps)})" if steps else "not finished"

    def curve(self, key: str) -> list[tuple[int, float]]:
        """Points `(step, value)` of a logged figure."""
        return [(entry["step"], entry[key]) for entry in self.history if key in entry and "step" in entry]

    @property
    def first_steps(self) -> list[dict[str, float]]:
        """Log entries of the first three training steps."""
        return [entry for entry in self.history if "loss" in entry and entry.get("step", 9) <= 3][:3]


def load_run_folder(path: str | Path) -> RunFolder:
    """Load a run's files; missing ones stay empty.

    Raises:
        FileNotFoundError: when the folder is not a run folder.
        ValueError: when a file is damaged.
    """
    path = Path(path)
    if not path.is_dir() or not any((path / name).is_file() for name in (RESULTS_NAME, LOG_NAME, TRAINER_STATE_NAME)):
        raise FileNotFoundError(f"{path} is no run folder: it has no {RESULTS_NAME}, trainer_state.json or {LOG_NAME}.")
    state = load_json(path / TRAINER_STATE_NAME, None)
    if state is None:
        states = path.glob(f"{CHECKPOINT_PATTERN}/{TRAINER_STATE_NAME}")
        checkpoints = sorted(states, key=lambda file: file.stat().st_mtime)
        state = load_json(checkpoints[-1], {}) if checkpoints else {}
    log = path / LOG_NAME
    return RunFolder(
        path=path,
        results=load_json(path / RESULTS_NAME, {}),
        history=state.get("log_history", []),
        log=log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else [],
        gallery=load_json(path / GALLERY_FOLDER / GALLERY_INDEX, [], kind=list),
        data=load_json(path / DATA_SUMMARY_NAME, {}),
    )
