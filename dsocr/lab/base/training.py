"""Training the built-in base from random weights, for as long as it is let run: resumable to the bit at every evaluation."""

import ctypes
import json
import logging
import math
import sys
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from dsocr.lab.base.chunks import LineSources, build_chunk
from dsocr.lab.base.column_reader import joint_losses
from dsocr.lab.base.curriculum import Curriculum, advance
from dsocr.lab.base.evaluation import build_evaluation_sets, measure_sets
from dsocr.lab.base.run import LAST, BaseArguments, Progress, Run, save_run, start_run


logger = logging.getLogger(__name__)


def _learning_rate(progress: Progress, arguments: BaseArguments) -> float:
    warm = min(1.0, (progress.step - progress.warmed + 1) / arguments.schedule.warmup_steps)
    if progress.decaying < 0:
        return warm * arguments.schedule.learning_rate
    share = min(1.0, (progress.step - progress.decaying) / arguments.decay_steps)
    return warm * arguments.schedule.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share)))


def train_chunk(run: Run, batches: list, arguments: BaseArguments, bar: tqdm) -> dict[str, list[float]]:
    """Train on a chunk's batches.

    Returns:
        `reader_KIND` and `language_KIND`: CTC loss and language loss of every line of a kind; `guidance` of every batch.
    """
    losses = defaultdict(list)
    for lines in batches:
        for group in run.optimizer.param_groups:
            group["lr"] = _learning_rate(run.progress, arguments)
        rows = [{"image": line.image, "text": line.text} for line in lines]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=arguments.schedule.bf16):
            found = joint_losses(run.model, run.reader, run.processor, rows, seed=run.progress.step)
        found.total.backward()
        nn.utils.clip_grad_norm_(run.parameters, 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
        run.progress.step += 1
        run.progress.lines += len(lines)
        for line, loss in zip(lines, found.language.tolist(), strict=True):
            losses[f"language_{line.kind}"].append(loss)
        if found.reader is not None:
            losses["guidance"].append(found.guidance.item())
            for line, loss in zip(lines, found.reader.tolist(), strict=True):
                losses[f"reader_{line.kind}"].append(loss)
        bar.update(len(lines))
    return losses


def _mean(values: list[float]) -> float:
    return sum(values) / max(1, len(values))


def _mean_of(losses: dict[str, list[float]], name: str) -> float:
    """Mean over the lines of all kinds."""
    return _mean([value for key, values in losses.items() if key.startswith(name) for value in values])


def _record(run: Run, sets: dict, window: dict[str, list[float]], folder: Path) -> None:
    """Evaluate, add a record to the history, and write it to the log."""
    errors, examples = measure_sets(run.model, run.processor, sets)
    run.progress.hand_cer = errors.get("fonts_seen")
    curriculum = Curriculum(**run.progress.curriculum)
    record = {
        "chunk": run.progress.chunk,
        "step": run.progress.step,
        "lines": run.progress.lines,
        "hours": round(run.progress.seconds / 3600, 3),
        "stage": curriculum.stage,
        **{name: value for name, value in run.progress.curriculum.items() if name != "waited"},
        "loss": {name: round(_mean(values), 4) for name, values in sorted(window.items())},
        "cer": errors,
    }
    run.progress.history.append(record)
    with (folder / "evaluations.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record | {"examples": examples}, ensure_ascii=False) + "\n")
    logger.info("%s", json.dumps(record, ensure_ascii=False))


def _return_free_memory() -> None:
    """Give free pages back to the system. glibc keeps them, and batches of many shapes split them up: after the first chunk
    2.6 of 4.0 GiB were free pages, and the process grew to 7 GiB in an hour."""
    # Only glibc has this function.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def pretrain_base(arguments: BaseArguments) -> Run:
    """Train the base; see the module's text. Returns when `max_chunks` or `decay_steps` are done.

    With a state that has `max_chunks` behind it nothing is trained, and the state is written to `output_dir`.
    """
    torch.set_num_threads(arguments.schedule.threads)
    torch.set_flush_denormal(True)
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    sources = LineSources(arguments.fonts, arguments.real_lines)
    sets = build_evaluation_sets(sources, arguments.real_lines, arguments.letters, lines=arguments.schedule.eval_lines)
    run = start_run(arguments)
    progress = run.progress
    if arguments.decay_steps and progress.decaying < 0:
        progress.decaying = progress.step
    logger.info("%.2f million parameters; %s", sum(p.numel() for p in run.model.parameters()) / 1e6, arguments)
    window: dict[str, list[float]] = defaultdict(list)
    start, earlier = time.perf_counter(), progress.seconds
    bar = tqdm(desc="Training", unit="line", initial=progress.lines, mininterval=10)
    while progress.chunk < arguments.max_chunks:
        curriculum = Curriculum(**progress.curriculum)
        batches = build_chunk(
            sources,
            curriculum,
            seed=arguments.schedule.seed,
            index=progress.chunk,
            batch_size=arguments.schedule.batch_size,
            lines=arguments.schedule.chunk_lines,
        )
        losses = train_chunk(run, batches, arguments, bar)
        for name, values in losses.items():
            window[name] += values
        means = {name: _mean(values) for name, values in losses.items()}
        overall = _mean_of(losses, "reader")
        progress.curriculum = asdict(advance(curriculum, means, overall, progress.hand_cer))
        progress.chunk += 1
        progress.seconds = earlier + time.perf_counter() - start
        _return_free_memory()
        bar.set_postfix(
            ctc=f"{overall:.2f}",
            lm=f"{_mean_of(losses, 'language'):.2f}",
            guide=f"{_mean(losses['guidance']):.2f}",
            **progress.curriculum,
        )
        done = 0 <= progress.decaying <= progress.step - arguments.decay_steps if arguments.decay_steps else False
        done = done or progress.chunk == arguments.max_chunks
        if done or progress.chunk % arguments.schedule.eval_chunks == 0:
            _record(run, sets, window, folder)
            window.clear()
            save_run(run, folder)
        if done:
            break
    if not (folder / LAST).exists():
        save_run(run, folder)
    return run
