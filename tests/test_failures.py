"""From failures to advice."""

import errno
import re

import pytest
import torch
from safetensors import SafetensorError

from dsocr.data import BadSampleError
from dsocr.failures import INTERRUPTED, explained, memory_advice


SETTINGS = {"batch_size": 4, "checkpointing": False, "image_mode": "gundam"}


def end_with(error):
    with pytest.raises(SystemExit) as stop, explained(**SETTINGS):
        raise error
    return stop.value.code


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "--per_device_train_batch_size 1"),
        (OSError(errno.ENOSPC, "No space left on device", "outputs/x"), "outputs/x.*another --output_dir"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "another --output_dir"),
        (PermissionError(errno.EACCES, "Permission denied", "/outputs"), "/outputs"),
        (FileNotFoundError("--dataset_name x: there is no such file"), "--dataset_name x"),
    ],
)
def test_what_a_person_can_mend_ends_in_one_message(caplog, error, words):
    assert end_with(error) == 1
    assert re.search(words, caplog.text)
    assert "Traceback" not in caplog.text


def test_this_projects_own_checks_are_explained_and_others_keep_their_trace():
    from dsocr.prompts import split_prompt

    with pytest.raises(SystemExit), explained(**SETTINGS):
        split_prompt("nothing")
    with pytest.raises(ValueError, match="invalid literal"), explained(**SETTINGS):
        int("x")
    with pytest.raises(ZeroDivisionError), explained(**SETTINGS):
        1 / 0
    assert issubclass(BadSampleError, ValueError)


def test_ctrl_c():
    assert end_with(KeyboardInterrupt()) == INTERRUPTED


def test_memory_advice_names_only_what_is_left_to_change():
    everything = memory_advice(**SETTINGS)
    for flag in ("--per_device_train_batch_size 1", "--activation_checkpointing", "--image_mode base"):
        assert flag in everything
    little = memory_advice(batch_size=1, checkpointing=True, image_mode="tiny")
    for flag in ("--per_device_train_batch_size", "--activation_checkpointing", "--image_mode"):
        assert flag not in little
