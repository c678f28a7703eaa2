"""A run of the base's training: its arguments, where it stands, and how it is written down and taken up again."""

import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from dsocr.cli.parser import flag
from dsocr.common.files import load_json, write_json
from dsocr.lab.base.chunks import CHUNK_LINES
from dsocr.lab.base.column_reader import ColumnReader
from dsocr.lab.base.curriculum import Curriculum
from dsocr.lab.base.shape import BaseShape, build_base_model
from dsocr.samples.processor import OcrProcessor


LAST, PREVIOUS = "last", "previous"
STATE_NAME, CONTINUE_NAME, RELEASE_FOLDER = "state.pt", "continue.pt", "release"


@dataclass(frozen=True)
class Schedule:
    """How the base is trained; constants of one base, which tests make smaller.

    Attributes:
        batch_size: Lines per step at most.
        learning_rate: Learning rate, constant after the warm-up.
        warmup_steps: Steps of linear warm-up.
        chunk_lines: Lines of a chunk, the unit of data.
        eval_chunks: Evaluate and save every so many chunks.
        eval_lines: Lines of each evaluated set.
        seed: Seed of weights and data.
        threads: CPU threads.
        bf16: Run forward in bfloat16 (autocast); weights stay fp32.
        shape: Sizes of the model.
    """

    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 300
    chunk_lines: int = CHUNK_LINES
    eval_chunks: int = 16
    eval_lines: int = 64
    seed: int = 0
    threads: int = 1
    bf16: bool = True
    shape: BaseShape = BaseShape()


@dataclass
class BaseArguments:
    """Arguments of recipes/pretrain_base.py."""

    output_dir: str = flag("outputs/base", "Folder of the run.")
    fonts: str | None = flag(None, "Folder of further handwriting fonts (*.woff2).")
    real_lines: str | None = flag(None, "Folder of real lines, one folder a source.")
    letters: str | None = flag(None, "Folder of lines (metadata.jsonl) that are evaluated on and never trained on.")
    decay_steps: int = flag(0, "Let the rate fall to 2 %% over so many steps, then stop. 0 goes on for ever.")
    max_chunks: int = flag(1_000_000, f"Chunks of {CHUNK_LINES} lines in all.")
    resume_from: str | None = flag(
        None, "Folder of a run, or a continue.pt, to go on from; name output_dir to go on in it."
    )
    schedule: Schedule = field(default=Schedule(), init=False)


@dataclass
class Progress:
    """Where a run stands, beside its weights.

    Attributes:
        chunk: Number of the next chunk.
        step: Optimizer steps done.
        warmed: Step at which the optimizer was made; the warm-up counts from there.
        decaying: Step at which the rate began to fall, -1 before that.
        lines: Lines seen.
        seconds: Time spent.
        curriculum: Its state, for the next chunk.
        hand_cer: CER of rendered hands at the last evaluation.
        history: A record for every evaluation.
    """

    chunk: int = 0
    step: int = 0
    warmed: int = 0
    decaying: int = -1
    lines: int = 0
    seconds: float = 0.0
    curriculum: dict = field(default_factory=lambda: asdict(Curriculum()))
    hand_cer: float | None = None
    history: list[dict] = field(default_factory=list)


@dataclass
class Run:
    """A run's parts."""

    model: PreTrainedModel
    processor: OcrProcessor
    reader: ColumnReader
    optimizer: torch.optim.Optimizer
    progress: Progress

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.model.parameters(), *self.reader.parameters()]


def find_state(path: str | Path) -> Path:
    """The newest state of a run's folder, or the file itself.

    Raises:
        FileNotFoundError: when there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    for name in (LAST, PREVIOUS):
        if (path / name / STATE_NAME).is_file():
            return path / name / STATE_NAME
    raise FileNotFoundError(f"--resume_from {path}: there is no {LAST}/{STATE_NAME}, and it is no file of that kind.")


def start_run(arguments: BaseArguments) -> Run:
    """A new run, or the one that `resume_from` names. A state without optimizer warms a new one up."""
    torch.manual_seed(arguments.schedule.seed)
    model, processor = build_base_model(arguments.schedule.shape, arguments.schedule.seed)
    # On one CPU thread the plain products are a fifth faster than the fused kernel, whose backward is slow.
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    reader = ColumnReader(arguments.schedule.shape.width, len(processor.tokenizer))
    parameters = [*model.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=arguments.schedule.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    progress = Progress()
    if arguments.resume_from is not None:
        state = torch.load(find_state(arguments.resume_from), weights_only=True)
        model.load_state_dict(state["model"])
        reader.load_state_dict(state["reader"])
        progress = Progress(**state["progress"])
        if "optimizer" in state:
            optimizer.load_state_dict(state["optimizer"])
        else:
            progress.warmed = progress.step
    return Run(model.train(), processor, reader, optimizer, progress)


def save_run(run: Run, folder: str | Path) -> None:
    """Write `last/`: `state.pt` (everything), `continue.pt` (weights in bf16 without the optimizer, small enough to keep),
    `release/` (bf16 checkpoint and processor) and `history.json`. What was there becomes `previous/`."""
    folder = Path(folder)
    saving, last, previous = folder / "saving", folder / LAST, folder / PREVIOUS
    shutil.rmtree(saving, ignore_errors=True)
    saving.mkdir(parents=True)
    state = {"model": run.model.state_dict(), "reader": run.reader.state_dict(), "progress": asdict(run.progress)}
    torch.save(state | {"optimizer": run.optimizer.state_dict()}, saving / STATE_NAME)
    for part in ("model", "reader"):
        state[part] = {name: value.to(torch.bfloat16) for name, value in state[part].items()}
    torch.save(state, saving / CONTINUE_NAME)
    run.model.save_pretrained(saving / RELEASE_FOLDER, state_dict=state["model"])
    run.processor.save_pretrained(saving / RELEASE_FOLDER)
    config = saving / RELEASE_FOLDER / "config.json"
    write_json(config, load_json(config) | {"dtype": "bfloat16"})
    write_json(saving / "history.json", run.progress.history)
    if last.exists():
        shutil.rmtree(previous, ignore_errors=True)
        os.replace(last, previous)
    os.replace(saving, last)
