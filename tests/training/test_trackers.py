"""Trackers are asked for at the start, and get figures and pictures."""

import sys

import pytest
from helpers.training import build_trainer, line_dataset

from dsocr.cli.training import parse_arguments
from dsocr.training import trackers
from dsocr.training.trackers import check_trackers, log_picture


def test_a_tracker_that_is_not_installed_is_said_at_the_start(monkeypatch, capsys):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--report_to wandb: wandb is not installed; `pip install wandb`"):
        check_trackers(["wandb"])
    check_trackers("none")
    check_trackers([])
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--report_to", "mlflow"])
    assert stop.value.code == 2 and "pip install mlflow" in capsys.readouterr().err


def test_error_rates_and_pictures_reach_tensorboard(tmp_path, lines):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    dataset = line_dataset(tmp_path / "data", lines)
    trainer = build_trainer(
        tmp_path / "run",
        dataset,
        eval_dataset=dataset.select(range(4)),
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        report_to=["tensorboard"],
    )
    trainer.train()
    folder = next(path.parent for path in (tmp_path / "run").rglob("events.out.*"))
    events = accumulator.EventAccumulator(str(folder)).Reload()
    assert {"eval/cer", "eval/wer", "train/loss"} <= set(events.Tags()["scalars"])
    pictures = events.Images("eval/examples")
    assert [picture.step for picture in pictures] == [1, 2]
    assert pictures[0].width > 100


def test_without_a_tracker_no_picture_is_drawn(tmp_path, lines):
    dataset = line_dataset(tmp_path / "data", lines)
    trainer = build_trainer(tmp_path / "run", dataset, eval_dataset=dataset.select(range(2)), max_steps=1)
    trainer.evaluate()
    assert not (tmp_path / "run" / "evaluation_examples.png").exists()


class _Fake:
    """Stands in for a tracker's package, which is heavy and needs an account or a server; keeps what it is given."""

    def __init__(self):
        self.given = []

    def log(self, values, **options):
        self.given.append(values)

    def log_artifact(self, path, artifact_path):
        self.given.append({"path": path, "artifact_path": artifact_path})

    def Image(self, path):
        return ("image", path)


@pytest.mark.parametrize(
    ("package", "callback"), [("wandb", "WandbCallback"), ("trackio", "TrackioCallback"), ("mlflow", "MLflowCallback")]
)
def test_pictures_reach_the_other_trackers(package, callback, tmp_path, monkeypatch):
    from transformers import integrations

    assert hasattr(integrations, callback), f"transformers.integrations.{callback} moved"
    fake = _Fake()
    monkeypatch.setitem(sys.modules, package, fake)
    stand_in = type(callback, (), {})()
    assert log_picture([stand_in, object()], tmp_path / "a.png", 7) == [callback]
    (given,) = fake.given
    assert str(tmp_path / "a.png") in str(given)
    if package == "mlflow":
        assert given["artifact_path"] == "examples/step_7"
    else:
        assert list(given) == ["eval/examples"]
