"""From failures to advice."""

import errno
import logging
import re

import pytest
import torch
from safetensors import SafetensorError

from dsocr.common.errors import INTERRUPTED, explained
from dsocr.data import BadSampleError


def advice():
    return "--per_device_train_batch_size 1"


def end_with(error):
    with pytest.raises(SystemExit) as stop, explained(advice):
        raise error
    return stop.value.code


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "--per_device_train_batch_size 1"),
        (OSError(errno.ENOSPC, "No space left on device", "outputs/x"), "outputs/x.*another output folder"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "another output folder"),
        (
            RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 704 vs 640"),
            "another output folder",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/outputs"), "/outputs"),
        (FileNotFoundError("--dataset_name x: there is no such file"), "--dataset_name x"),
    ],
)
def test_what_a_person_can_mend_ends_in_one_message(caplog, error, words):
    # The trace goes to run.log alone, at DEBUG.
    caplog.set_level(logging.INFO, logger="dsocr")
    assert end_with(error) == 1
    assert re.search(words, caplog.text)
    assert "Traceback" not in caplog.text


def test_this_projects_own_checks_are_explained_and_others_keep_their_trace():
    from dsocr.samples.tokenizer import split_prompt

    with pytest.raises(SystemExit), explained(advice):
        split_prompt("nothing")
    with pytest.raises(ValueError, match="invalid literal"), explained(advice):
        int("x")
    with pytest.raises(ZeroDivisionError), explained(advice):
        _ = 1 / 0
    assert issubclass(BadSampleError, ValueError)


def test_ctrl_c():
    assert end_with(KeyboardInterrupt()) == INTERRUPTED
