"""The steps of the check, and how they share the time: each in a process of its own, with what is left as its limit."""

import contextlib
import logging
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
from tqdm.auto import tqdm

from dsocr.lab.gpu_check.batches import batch_probes
from dsocr.lab.gpu_check.cards import card_probes
from dsocr.lab.gpu_check.environment import environment_probes
from dsocr.lab.gpu_check.kernels import kernel_probes
from dsocr.lab.gpu_check.levers import lever_probes
from dsocr.lab.gpu_check.precisions import precision_probes
from dsocr.lab.gpu_check.quantized import quantized_probes
from dsocr.lab.gpu_check.reading import reading_probes
from dsocr.lab.gpu_check.resuming import resuming_probes
from dsocr.lab.gpu_check.setup import CheckSetup, Figures, Probe, measure_probes
from dsocr.lab.gpu_check.vision import vision_probes
from dsocr.lab.memory import begin_process


logger = logging.getLogger(__name__)

DONE, BROKEN, STOPPED, NOT_RUN = "done", "failed", "stopped", "not run"


@dataclass(frozen=True)
class Step:
    """A step of the check.

    Attributes:
        title: What it measures.
        probes: Its measurements.
        seconds: Time that the full size is expected to take on a GPU of the H100's class: an estimate, used to leave a
            step out that no longer fits.
    """

    title: str
    probes: Callable[[CheckSetup], Iterator[Probe]]
    seconds: int


# The most telling first: what no longer fits the time is left out.
STEPS = {
    "environment": Step("environment and matrix rates", environment_probes, 15),
    "kernels": Step("kernels against plain code", kernel_probes, 30),
    "precisions": Step("the same batch in every type", precision_probes, 40),
    "batches": Step("training with kept features", batch_probes, 130),
    "quantized": Step("QLoRA", quantized_probes, 100),
    "vision": Step("vision tower and feature cache", vision_probes, 30),
    "reading": Step("reading", reading_probes, 60),
    "resuming": Step("the demonstration killed and resumed", resuming_probes, 60),
    "cards": Step("presets on smaller cards", card_probes, 80),
    "levers": Step("training by path", lever_probes, 60),
}
# A trial of the tiny size takes a tenth of that, or less.
_TINY_SHARE = 0.1
# A step that hangs is ended after so many times what it should take, and the time to import everything.
_LONGEST, _STARTING_SECONDS = 3, 90


@dataclass
class StepResult:
    """What came of a step.

    Attributes:
        title: What it measures.
        status: `"done"`, `"failed"`, `"stopped"` (its time was over) or `"not run"`.
        seconds: Time that it took.
        reason: Why it is not done.
        rows: Figures by measurement; a measurement that failed, or that this device has no means for, has its reason.
    """

    title: str
    status: str = DONE
    seconds: float = 0.0
    reason: str = ""
    rows: dict[str, Figures] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def _log_path(setup: CheckSetup, name: str) -> Path:
    return Path(setup.output_dir) / "logs" / f"{name}.log"


def _work(name: str, setup: CheckSetup, results: Connection) -> None:
    """Run a step in this process and send its rows; what it prints goes into its log."""
    with (
        _log_path(setup, name).open("w", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        # What libraries in C and further processes print goes past Python's own streams.
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        begin_process()
        try:
            for row in measure_probes(STEPS[name].probes(setup)):
                results.send(row)
        except Exception as error:
            # A step that cannot even begin must not end the check: the reason is reported, the trace is in the log.
            traceback.print_exc()
            results.send(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        results.send(None)


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a process and what it started."""
    if process.pid is None or not process.is_alive():
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in started:
        child.kill()
    process.join()


def run_step(
    name: str, setup: CheckSetup, limit_seconds: float, on_row: Callable[[str], None] = lambda row: None
) -> StepResult:
    """Run one step in a process of its own: a crash, a hang or an error of CUDA that lasts ends that step alone.

    Args:
        name: One of `STEPS`.
        setup: The setup.
        limit_seconds: After this time the process is ended; rows that it sent are kept.
        on_row: Called with the name of every finished measurement.
    """
    result, begun = StepResult(STEPS[name].title), time.monotonic()
    _log_path(setup, name).parent.mkdir(parents=True, exist_ok=True)
    context = _process_context(setup)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, setup, sender))
    process.start()
    sender.close()
    try:
        while True:
            if not receiver.poll(max(0.0, begun + limit_seconds - time.monotonic())):
                result.status, result.reason = STOPPED, f"its time of {limit_seconds:.0f} s was over"
                break
            message = receiver.recv()
            if message is None:
                break
            if isinstance(message, str):
                result.status, result.reason = BROKEN, message
            else:
                result.rows[message[0]] = message[1]
                on_row(message[0])
        process.join(1 if result.status == STOPPED else 10)
    except EOFError:
        process.join(10)
        result.status = BROKEN
        result.reason = f"its process died (exit code {process.exitcode}); did the memory run out?"
    finally:
        _end(process)
    result.seconds = time.monotonic() - begun
    return result


def _process_context(setup: CheckSetup) -> Any:
    """Processes that begin anew, or on a CPU ones that are forked from one with all imports done.

    Importing bitsandbytes starts CUDA, which does not work in a process that is forked afterwards.
    """
    if setup.on_gpu or sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def run_steps(
    names: Sequence[str],
    setup: CheckSetup,
    budget_seconds: float,
    on_step: Callable[[dict[str, StepResult]], None] = lambda results: None,
) -> dict[str, StepResult]:
    """Run steps one after the other, with a progress bar, within a time for all of them.

    Args:
        names: Some of `STEPS`.
        setup: The setup.
        budget_seconds: A step that is expected to take longer than what is left is not run.
        on_step: Called after every step with the results so far.

    Returns:
        Results by step, in the order of the names.
    """
    end = time.monotonic() + budget_seconds
    results: dict[str, StepResult] = {}
    with tqdm(total=len(names), desc="Checking", unit="step") as bar:
        for name in names:
            expected = STEPS[name].seconds * (1 if setup.size == "full" else _TINY_SHARE)
            left = end - time.monotonic()
            bar.set_description_str(STEPS[name].title)
            if left < expected:
                reason = f"it takes about {expected:.0f} s, and {max(0.0, left):.0f} s of the time are left"
                results[name] = StepResult(STEPS[name].title, NOT_RUN, reason=reason)
            else:
                limit = min(left, _LONGEST * expected + _STARTING_SECONDS)
                results[name] = run_step(name, setup, limit, lambda row: bar.set_postfix_str(row))
            logger.info("%s: %s %s", name, results[name].status, results[name].reason)
            on_step(results)
            bar.update()
    return results
