"""Find the checkpoint to resume from: the newest complete one."""

import logging
import re
import shutil
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dsocr.common.files import load_json
from dsocr.common.run_files import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    CHECKPOINT_PATTERN,
    REPLAY_ANSWERS_NAME,
    TRAINER_STATE_NAME,
)


logger = logging.getLogger(__name__)

_NAME = re.compile(r"checkpoint-(\d+)")
_NEEDED = (TRAINER_STATE_NAME, "optimizer.pt", "scheduler.pt")


def find_defect(checkpoint: Path) -> str | None:
    """Name the first missing or damaged file of a checkpoint; `None` when it is complete.

    `trainer_state.json` is written last; without `optimizer.pt` Trainer would silently restart Adam.
    """
    for name in _NEEDED:
        if not (checkpoint / name).is_file() or (checkpoint / name).stat().st_size == 0:
            return f"no {name}"
    if not any(checkpoint.glob("rng_state*.pth")):
        return "no rng_state*.pth"
    for path in [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *sorted(checkpoint.glob("rng_state*.pth"))]:
        # PyTorch writes zip files, whose directory stands at the end: a truncated file has none.
        if not zipfile.is_zipfile(path):
            return f"a damaged {path.name}"
    try:
        state = load_json(checkpoint / TRAINER_STATE_NAME)
    except ValueError:
        return f"a damaged {TRAINER_STATE_NAME}"
    if not isinstance(state.get("global_step"), int):
        return f"a {TRAINER_STATE_NAME} without global_step"
    if (checkpoint / ADAPTER_WEIGHTS_NAME).is_file() and not (checkpoint / ADAPTER_CONFIG_NAME).is_file():
        return f"no {ADAPTER_CONFIG_NAME}"
    weights = sorted(checkpoint.glob("*.safetensors"))
    if not weights:
        return "no *.safetensors"
    for path in weights:
        try:
            with safe_open(path, framework="pt") as file:
                file.keys()
        except SafetensorError:
            return f"a damaged {path.name}"
    return None


def find_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest complete checkpoint of a run, or `None`; incomplete ones are skipped with a warning."""
    folder = Path(output_dir)
    numbered = [
        (int(match[1]), path) for path in folder.glob(CHECKPOINT_PATTERN) if (match := _NAME.fullmatch(path.name))
    ]
    for _, path in sorted(numbered, reverse=True):
        defect = find_defect(path)
        if defect is None:
            return path
        logger.warning("skipped %s: it has %s", path, defect)
    return None


def resolve_resume(value: str | bool | None, output_dir: str | Path, *, replace: bool = False) -> str | None:
    """Turn the value of `--resume_from_checkpoint` into a checkpoint folder.

    Args:
        value: `True`, `"true"` (the newest complete checkpoint of `output_dir`), a path, or `None`/`"false"`.
        output_dir: The run's folder.
        replace: Delete the checkpoints of an earlier run instead of refusing a fresh one.

    Returns:
        The checkpoint folder, `None` to start afresh.

    Raises:
        FileNotFoundError: when there is no complete checkpoint, or the path is not a complete checkpoint.
        ValueError: when a fresh run would write into a folder with another run's checkpoints. A later resume could
            take those for its own, and the limit on checkpoints could delete them.
    """
    if value in (None, False) or str(value).lower() in ("false", "no", "none", ""):
        earlier = sorted(path for path in Path(output_dir).glob(CHECKPOINT_PATTERN) if path.is_dir())
        if replace:
            for path in earlier:
                shutil.rmtree(path, ignore_errors=True)
            # Answers of another draw of lines.
            (Path(output_dir) / REPLAY_ANSWERS_NAME).unlink(missing_ok=True)
        elif earlier:
            names = ", ".join(path.name for path in earlier[:3])
            raise ValueError(
                f"--output_dir {output_dir} holds {names} of an earlier run. Go on with that run "
                "(--resume_from_checkpoint), name another folder, or start afresh (--overwrite_output_dir deletes them)."
            )
        return None
    if value is True or str(value).lower() in ("true", "yes", "1"):
        checkpoint = find_checkpoint(output_dir)
        if checkpoint is None:
            broken = any(path.is_dir() for path in Path(output_dir).glob(CHECKPOINT_PATTERN))
            afresh = "put --overwrite_output_dir in its place" if broken else "leave the flag out"
            raise FileNotFoundError(
                f"--resume_from_checkpoint: no complete checkpoint in {output_dir}. Give the --output_dir of the run "
                f"that was stopped, or {afresh} to start afresh."
            )
        logger.info("resuming from %s", checkpoint)
        return str(checkpoint)
    checkpoint = Path(str(value))
    if not checkpoint.is_dir():
        raise FileNotFoundError(f"--resume_from_checkpoint {value}: there is no such folder.")
    defect = find_defect(checkpoint)
    if defect is not None:
        raise FileNotFoundError(f"--resume_from_checkpoint {value}: this checkpoint has {defect}.")
    logger.info("resuming from %s", checkpoint)
    return str(checkpoint)
