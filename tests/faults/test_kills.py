"""Five jobs, each killed at ten moments and run again: the result equals that of a run that nobody disturbed.

Half of the moments are file operations (the process ends before its n-th change under its folder), half are CPU times (the
process ends wherever it is, in the midst of a write too). All are drawn from a fixed seed. A job runs in a child forked from
this process, which has everything imported, so that no trial pays for imports.
"""

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from helpers.models import load_tiny_base
from helpers.recipes import load_recipe
from safetensors.torch import load_file

from dsocr.cli.parser import parse_recipe
from dsocr.cli.reading import EvaluateArguments
from dsocr.cli.tools import CheckArguments, PrepareArguments
from dsocr.data import load_ocr_dataset
from dsocr.models import freeze_vision
from dsocr.report import pages
from dsocr.samples.vision_cache import building
from dsocr.samples.vision_cache.options import CacheOptions
from dsocr.samples.vision_cache.store import DiskStore
from dsocr.training.checkpoints import find_checkpoint


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="trials are forked"),
    pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA and autograd's threads do not survive a fork"),
]

MOMENTS = 10
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"}
_WRITING = os.O_WRONLY | os.O_RDWR


def _count_changes(folder: Path, kill_at: int | None) -> Callable[[], int]:
    """Count this process's changes of files under a folder; it ends before change number `kill_at`."""
    count, inside = 0, str(folder)

    def look(event: str, args: tuple) -> None:
        nonlocal count
        changes = event in _CHANGES or (event == "open" and (args[2] or 0) & _WRITING)
        if changes and isinstance(args[0], str | os.PathLike) and os.fspath(args[0]).startswith(inside):
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(look)
    return lambda: count


@dataclass(frozen=True)
class Ended:
    """How a child ended: killed or not, its changes of files, its CPU seconds, and what it returned."""

    killed: bool
    changes: int = 0
    seconds: float = 0.0
    result: object = None


def run_child(
    work: Callable[[], object], folder: Path, *, kill_at: int | None = None, kill_after: float | None = None
) -> Ended:
    """Run `work` in a forked child; kill it before a change under `folder`, or after some CPU seconds.

    Raises:
        AssertionError: when the child ended by an error; the message holds the end of what it printed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    log, outcome = folder.parent / f"{folder.name}.log", folder.parent / f"{folder.name}.outcome"
    outcome.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException), log.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            sys.stdout = sys.stderr = file
            try:
                changes, start = _count_changes(folder, kill_at), time.process_time()
                result = work()
                outcome.write_text(json.dumps([changes(), time.process_time() - start, result]))
                code = 0
            except BaseException:
                traceback.print_exc()
            file.flush()
        os._exit(code)
    process = psutil.Process(child)
    while kill_after is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.cpu_times()
            if process.status() != psutil.STATUS_ZOMBIE and used.user + used.system < kill_after:
                time.sleep(0.005)
                continue
            os.kill(child, signal.SIGKILL)
        break
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Ended(killed=True)
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text(encoding="utf-8")[-3000:]
    return Ended(False, *json.loads(outcome.read_text()))


def draw_moments(job: str, whole: Ended) -> list[dict[str, float]]:
    """Ten moments of a job, from its undisturbed run: five changes of files and five CPU times."""
    rng, half = random.Random(zlib.crc32(job.encode())), MOMENTS // 2
    # One in each fifth of the run, so that the beginning and the end are always among them.
    shares = [(number + rng.random()) / half for number in range(MOMENTS)]
    changes = [{"kill_at": 1 + int(share * whole.changes)} for share in shares[:half]]
    return changes + [{"kill_after": (share - 1) * whole.seconds} for share in shares[half:]]


def run_trial(work: Callable[[Path], object], folder: Path, moment: dict[str, float]) -> None:
    """Run `work(folder)` and kill it at a moment; a run that was faster than its moment of CPU time is killed earlier."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        if run_child(partial(work, folder), folder, **moment).killed:
            return
        moment = {name: 0.8 * value for name, value in moment.items()}
    raise AssertionError(f"not killed: {moment}")


def read_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def _quick_children():
    """Children do not search this process's objects for garbage, and draw no curves, half of a short run's time."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["recipe"])
        patch.setattr(pages, "draw_curves", lambda *args, **options: "")
        yield
    gc.unfreeze()


# Dropout, so that the state of the random generators counts too.
TRAINING = "--max_steps 4 --save_strategy steps --save_steps 1 --eval_strategy no --load_best_model_at_end false "
TRAINING += "--logging_steps 1 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --lora_dropout 0.1 "
TRAINING += "--validation_fraction 0.2 --max_train_samples 6 --max_eval_samples 2 "
TRAINING += "--max_new_tokens 2 --disable_tqdm true --use_cpu true --bf16 false"


def train(data: Path, folder: Path) -> None:
    """Train as docs/reliability.md says: go on from a checkpoint where there is one, else start afresh."""
    words = ["--dataset_name", str(data), "--output_dir", str(folder), *TRAINING.split()]
    if find_checkpoint(folder) is not None:
        words.append("--resume_from_checkpoint")
    elif any(folder.glob("checkpoint-*")):
        words.append("--overwrite_output_dir")
    load_recipe("sft_lora").run(words)


def read_training(folder: Path) -> tuple[dict, dict, dict]:
    """Weights to the bit, losses by step, and the figures of the results."""
    weights = {
        name: tensor.numpy().tobytes() for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    results = json.loads((folder / "ocr_results.json").read_text())
    losses = {entry["step"]: (entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry}
    return (
        weights,
        losses,
        {name: results[name] for name in ("base", "adapter", "adapter_shuffled_images", "train_sample")},
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory, line_folder) -> tuple[Path, Ended]:
    folder = tmp_path_factory.mktemp("trained") / "whole"
    return folder, run_child(lambda: train(line_folder, folder), folder)


def test_training(tmp_path, line_folder, trained):
    whole, ended = trained
    expected = read_training(whole)
    assert list(expected[1]) == [1, 2, 3, 4]
    for number, moment in enumerate(draw_moments("training", ended)):
        folder = tmp_path / str(number)
        run_trial(partial(train, line_folder), folder, moment)
        run_child(partial(train, line_folder, folder), folder)
        assert read_training(folder) == expected, moment


def read_all(data: Path, adapter: Path, folder: Path) -> None:
    words = ["--dataset_name", data, "--adapter", adapter, "--output_dir", folder, "--max_new_tokens", 4]
    words += ["--per_device_eval_batch_size", 2, "--max_eval_samples", 10]
    load_recipe("evaluate").main(parse_recipe(EvaluateArguments, list(map(str, words)), None))


def read_predictions(folder: Path) -> tuple[list, dict]:
    """The lines of both files, settings first and then by index, and the judgement."""
    files = []
    for name in ("predictions_base.jsonl", "predictions.jsonl"):
        first, *rows = [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        files.append((first, sorted(rows, key=lambda row: row["index"])))
    return files, json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def test_reading(tmp_path, line_folder, trained):
    work, whole = partial(read_all, line_folder, trained[0]), tmp_path / "whole"
    ended = run_child(partial(work, whole), whole)
    expected = read_predictions(whole)
    assert [row["index"] for row in expected[0][1][1]] == list(range(10))
    for number, moment in enumerate(draw_moments("reading", ended)):
        folder = tmp_path / str(number)
        run_trial(work, folder, moment)
        run_child(partial(work, folder), folder)
        assert read_predictions(folder) == expected, moment


@pytest.fixture(scope="module")
def table(tmp_path_factory, line_folder) -> Path:
    """The lines again and again under their own images, with an image that is not there and one that is damaged."""
    folder = tmp_path_factory.mktemp("table") / "lines"
    shutil.copytree(line_folder, folder)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    rows.insert(3, {"image": "images/gone.png", "text": "gone"})
    rows.insert(7, {"image": "images/damaged.png", "text": "damaged"})
    (folder / "images" / "damaged.png").write_bytes(b"damaged")
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "metadata.jsonl"


def shorten(table: Path) -> Path:
    """A second table beside the first, without its last rows: what a person corrected after the kill."""
    shorter = table.with_name("shorter.jsonl")
    shorter.write_text("".join(table.read_text().splitlines(keepends=True)[:-5]))
    return shorter


def check_dataset_folders(
    job: str, tmp_path: Path, table: Path, work: Callable[[Path, Path], None], dataset: str
) -> None:
    """Kill a run over the whole table, then run over a shorter one: the files are those of the shorter one alone."""
    shorter = shorten(table)
    ended = run_child(partial(work, table, tmp_path / "whole"), tmp_path / "whole")
    run_child(partial(work, shorter, tmp_path / "shorter"), tmp_path / "shorter")
    whole, expected = read_files(tmp_path / "whole"), read_files(tmp_path / "shorter")
    assert len(whole) == len(expected) + 5
    for number, moment in enumerate(draw_moments(job, ended)):
        folder = tmp_path / str(number)
        run_trial(partial(work, table), folder, moment)
        if (folder / dataset / "metadata.jsonl").exists():
            # Killed behind its end: nothing is missing.
            assert read_files(folder / dataset) == read_files(tmp_path / "whole" / dataset), moment
        else:
            run_child(partial(work, shorter, folder), folder)
            assert read_files(folder) == expected, moment


def prepare(source: Path, folder: Path) -> None:
    words = [source, "--output", folder / "lines", "--on_bad_sample", "skip"]
    load_recipe("prepare_data").main(parse_recipe(PrepareArguments, list(map(str, words)), None))


def test_preparing(tmp_path, table):
    check_dataset_folders("preparing", tmp_path, table, prepare, "lines")


def repair(source: Path, folder: Path) -> None:
    words = [source, "--output_dir", folder / "doctor", "--fix", folder / "repaired"]
    assert load_recipe("check_data").main(parse_recipe(CheckArguments, list(map(str, words)), None)) == 1


def test_repairing(tmp_path, table):
    check_dataset_folders("repairing", tmp_path, table, repair, "repaired")


def keep_features(data: Path, folder: Path) -> int:
    """Fill the cache as `--vision_cache FOLDER` does, two images a file; returns the number of computed images."""
    model, processor = load_tiny_base()
    freeze_vision(model)
    computed = []
    compute, building._IMAGES_PER_FILE = building.compute_features, 2

    def count(model, views, *args, **options):
        computed.extend(views)
        return compute(model, views, *args, **options)

    building.compute_features = count
    dataset = load_ocr_dataset(data, progress=False)
    cache = building.build_feature_cache(
        model, processor, [dataset], CacheOptions(str(folder)), batch_size=2, progress=False
    )
    assert all(cache.find(image) is not None for image in dataset["image"])
    return len(computed)


def read_features(folder: Path) -> dict[str, tuple]:
    """By key, the features to the bit."""
    found = {}
    for store in map(DiskStore, folder.glob("*/")):
        for key in store._places:
            features = store.get(key)
            tensors = features.global_view, features.tiles
            found[key] = (*(tensor.numpy().tobytes() for tensor in tensors), features.grid, features.n_tokens)
    return found


def test_the_vision_cache(tmp_path, line_folder):
    work, whole = partial(keep_features, line_folder), tmp_path / "whole"
    ended = run_child(partial(work, whole), whole)
    expected = read_features(whole)
    assert ended.result == len(expected) == 16
    for number, moment in enumerate(draw_moments("vision cache", ended)):
        folder = tmp_path / str(number)
        run_trial(work, folder, moment)
        held = read_features(folder)
        assert held.items() <= expected.items()
        assert run_child(partial(work, folder), folder).result == len(expected) - len(held), moment
        assert read_features(folder) == expected, moment
