"""Experiment trackers: check early that they are installed, and log pictures beside Trainer's figures."""

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import TrainerCallback


PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb", "mlflow": "mlflow"}


def check_trackers(names: str | Sequence[str]) -> None:
    """Refuse a tracker that is not installed.

    Args:
        names: `--report_to`: `"none"`, or names of trackers.

    Raises:
        ValueError: when a package is missing; the message names it. (Trainer would only say so after loading the
            model.)
    """
    for name in [names] if isinstance(names, str) else names:
        package = PACKAGES.get(name)
        if package and find_spec(package) is None:
            raise ValueError(f"--report_to {name}: {package} is not installed; `pip install {package}`.")


def log_picture(callbacks: Iterable[TrainerCallback], path: str | Path, step: int) -> list[str]:
    """Log a picture to every tracker that Trainer reports to.

    Args:
        callbacks: Trainer's callbacks.
        path: The picture.
        step: Step of the run.

    Returns:
        The class names of the callbacks that logged it.
    """
    taken = []
    for callback in callbacks:
        name = type(callback).__name__
        if name == "TensorBoardCallback" and callback.tb_writer is not None:
            with Image.open(path) as picture:
                callback.tb_writer.add_image(
                    "eval/examples", np.asarray(picture.convert("RGB")), step, dataformats="HWC"
                )
        elif name == "WandbCallback":
            import wandb

            wandb.log({"eval/examples": wandb.Image(str(path))}, commit=False)
        elif name == "TrackioCallback":
            import trackio

            trackio.log({"eval/examples": trackio.Image(str(path))})
        elif name == "MLflowCallback":
            import mlflow

            mlflow.log_artifact(str(path), artifact_path=f"examples/step_{step}")
        else:
            continue
        taken.append(name)
    return taken
