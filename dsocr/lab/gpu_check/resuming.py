"""A training run that is killed and resumed, beside one that is not: their losses must be equal."""

import itertools
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from dsocr.cli.demo import WRITERS
from dsocr.cli.stages import build_trainer, cache_features, identify, load_base, load_data, load_processor
from dsocr.cli.training import parse_arguments
from dsocr.common.files import load_json
from dsocr.common.run_files import TRAINER_STATE_NAME
from dsocr.data.synthetic import generate_lines, write_dataset
from dsocr.lab.gpu_check.setup import CheckSetup, Figures, Probe
from dsocr.models.loading import TINY_BASE
from dsocr.training.checkpoints import resolve_resume


LINES, STEPS, SAVE_STEPS = 32, 8, 3
# After the checkpoint of step 3, and before that of step 6.
KILLED_AFTER = 5
# Rounding of 16-bit types; a run that restarted its optimizer or its data differs by far more.
_TOLERANCE = 0.01
# Windows has one signal alone that ends a process at once.
_SIGNAL = getattr(signal, "SIGKILL", signal.SIGTERM)
_FLAGS = {
    "max_steps": STEPS,
    "save_steps": SAVE_STEPS,
    "save_strategy": "steps",
    "eval_strategy": "no",
    "load_best_model_at_end": "false",
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "validation_fraction": 0.25,
    "disable_tqdm": "true",
}


class _Kill(TrainerCallback):
    """End this process at once after a step, as a power cut does: nothing is saved, nothing cleaned up."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == KILLED_AFTER:
            os.kill(os.getpid(), _SIGNAL)


def train_demonstration(config: str, data: str, output_dir: str, *, resume: bool = False, kill: bool = False) -> None:
    """Train the demonstration for a few steps, through the stages of `recipes/sft_lora.py`.

    Args:
        config: The demonstration's config file.
        data: Dataset folder.
        output_dir: Run folder.
        resume: Go on from its newest complete checkpoint.
        kill: Kill this process after step `KILLED_AFTER`.
    """
    # Some kernels of a GPU add in any order, so that even two equal runs would differ.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    argv = ["--config", config, "--model_name_or_path", str(TINY_BASE), "--dataset_name", data]
    argv += ["--output_dir", output_dir]
    argv += [word for name, value in _FLAGS.items() for word in (f"--{name}", str(value))]
    args = parse_arguments(argv)
    Path(output_dir).mkdir(parents=True, exist_ok=True)
    checkpoint = resolve_resume(resume, output_dir)
    processor, model = load_processor(args, str(TINY_BASE)), load_base(args, str(TINY_BASE))
    identity = identify(args, str(TINY_BASE), model, processor)
    sets, _ = load_data(args, data, processor, model)
    callbacks: list[TrainerCallback] = [_Kill()] if kill else []
    trainer = build_trainer(args, model, processor, sets, identity, callbacks=callbacks, resume=checkpoint)
    cache_features(args, trainer, sets)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_state()


def _train_in_process(setup: CheckSetup, name: str, **options: bool) -> int | None:
    """Exit code of a training run in a process of its own."""
    # Forked where that is safe, to save the seconds of all imports. CUDA does not work in a forked process.
    forked = sys.platform == "linux" and not setup.on_gpu
    context: Any = multiprocessing.get_context("fork" if forked else "spawn")
    folder = Path(setup.output_dir) / "resuming"
    words = (str(Path(setup.configs) / "demo.yaml"), str(folder / "lines"), str(folder / name))
    process = context.Process(target=train_demonstration, args=words, kwargs=options)
    process.start()
    process.join()
    return process.exitcode


def _read_losses(folder: Path) -> dict[int, float]:
    history = load_json(folder / TRAINER_STATE_NAME)["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}


def _train_whole(setup: CheckSetup) -> Figures:
    folder = Path(setup.output_dir) / "resuming"
    shutil.rmtree(folder, ignore_errors=True)
    lines = generate_lines("handwriting", seed=0, min_length=2, max_length=16, fonts=WRITERS)
    write_dataset(folder / "lines", list(itertools.islice(lines, LINES)))
    code = _train_in_process(setup, "whole")
    if code != 0:
        raise RuntimeError(f"the training process ended with exit code {code}; its messages are in the step's log")
    losses = _read_losses(folder / "whole")
    return {"steps": len(losses), "first_loss": losses[1], "last_loss": losses[STEPS]}


def _kill(setup: CheckSetup) -> Figures:
    code = _train_in_process(setup, "killed", kill=True)
    checkpoints = sorted(path.name for path in (Path(setup.output_dir) / "resuming" / "killed").glob("checkpoint-*"))
    if abs(code or 0) != _SIGNAL:
        raise RuntimeError(f"the process was to be killed and ended with exit code {code}; see the step's log")
    return {"exit_code": code, "killed_after_step": KILLED_AFTER, "checkpoints": " ".join(checkpoints)}


def _resume(setup: CheckSetup) -> Figures:
    code = _train_in_process(setup, "killed", resume=True)
    if code != 0:
        raise RuntimeError(f"the resumed process ended with exit code {code}; its messages are in the step's log")
    folder = Path(setup.output_dir) / "resuming"
    whole, resumed = _read_losses(folder / "whole"), _read_losses(folder / "killed")
    differences = [abs(resumed[step] - loss) for step, loss in whole.items() if step > SAVE_STEPS]
    if max(differences) > _TOLERANCE:
        raise RuntimeError(f"the losses of the resumed run differ by up to {max(differences):.3g}")
    return {
        "steps_compared": len(differences),
        "largest_loss_difference": max(differences),
        "equal": max(differences) == 0,
    }


def resuming_probes(setup: CheckSetup) -> Iterator[Probe]:
    """A whole run, a killed one, and the killed one resumed from its checkpoint."""
    yield "trained without a break", partial(_train_whole, setup)
    yield "killed", partial(_kill, setup)
    yield "resumed", partial(_resume, setup)
