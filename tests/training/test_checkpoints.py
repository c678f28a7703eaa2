"""Choosing the checkpoint to resume from."""

import pytest
import torch
from safetensors.torch import save_file

from dsocr.training.checkpoints import find_checkpoint, find_defect, resolve_resume


def write_checkpoint(folder, step):
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    save_file({"a": torch.zeros(100)}, path / "adapter_model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({"a": torch.zeros(100)}, path / name)
    (path / "adapter_config.json").write_text("{}", encoding="utf-8")
    (path / "trainer_state.json").write_text(f'{{"global_step": {step}}}', encoding="utf-8")
    return path


def truncate(path):
    path.write_bytes(path.read_bytes()[:-40])


DEFECTS = {
    "no trainer_state.json": lambda path: (path / "trainer_state.json").unlink(),
    "no optimizer.pt": lambda path: (path / "optimizer.pt").unlink(),
    "no scheduler.pt": lambda path: (path / "scheduler.pt").write_bytes(b""),
    "no rng_state": lambda path: (path / "rng_state.pth").unlink(),
    "damaged trainer_state.json": lambda path: (path / "trainer_state.json").write_text('{"a": '),
    "trainer_state.json without global_step": lambda path: (path / "trainer_state.json").write_text("{}"),
    "damaged optimizer.pt": lambda path: truncate(path / "optimizer.pt"),
    "damaged scheduler.pt": lambda path: truncate(path / "scheduler.pt"),
    "damaged rng_state.pth": lambda path: truncate(path / "rng_state.pth"),
    "no adapter_config.json": lambda path: (path / "adapter_config.json").unlink(),
    "no \\*.safetensors": lambda path: (path / "adapter_model.safetensors").unlink(),
    "damaged adapter_model.safetensors": lambda path: truncate(path / "adapter_model.safetensors"),
}


def test_the_newest_is_by_number_not_by_name(tmp_path):
    for step in (9, 100, 20):
        write_checkpoint(tmp_path, step)
    assert find_checkpoint(tmp_path).name == "checkpoint-100"
    assert find_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_half_written_one_is_skipped_with_a_warning(tmp_path, caplog, defect):
    write_checkpoint(tmp_path, 10)
    DEFECTS[defect](write_checkpoint(tmp_path, 20))
    assert find_checkpoint(tmp_path).name == "checkpoint-10"
    assert "skipped" in caplog.text and "checkpoint-20" in caplog.text
    with pytest.raises(FileNotFoundError, match=defect):
        resolve_resume(str(tmp_path / "checkpoint-20"), tmp_path)


@pytest.mark.parametrize("value", [True, "true", "True"])
def test_true_means_the_newest(tmp_path, caplog, value):
    newest = write_checkpoint(tmp_path, 3)
    with caplog.at_level("INFO"):
        assert resolve_resume(value, tmp_path) == str(newest)
    assert "resuming from" in caplog.text


@pytest.mark.parametrize("value", [None, False, "false"])
def test_nothing_means_a_fresh_start(tmp_path, value):
    assert resolve_resume(value, tmp_path) is None


def test_a_path_and_errors(tmp_path):
    path = write_checkpoint(tmp_path, 3)
    assert find_defect(path) is None
    assert resolve_resume(str(path), "elsewhere") == str(path)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint in .* or leave the flag out"):
        resolve_resume("true", tmp_path / "empty")
    (tmp_path / "killed" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="put --overwrite_output_dir in its place to start afresh"):
        resolve_resume("true", tmp_path / "killed")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        resolve_resume("no_such_checkpoint", tmp_path)


def test_a_fresh_run_does_not_mix_with_an_earlier_one(tmp_path):
    write_checkpoint(tmp_path, 8)
    with pytest.raises(ValueError, match="holds checkpoint-8 of an earlier run"):
        resolve_resume(None, tmp_path)
    assert resolve_resume(None, tmp_path, replace=True) is None
    assert not list(tmp_path.iterdir())
