"""Model and adapter folders with damaged or odd files: loaded, or one clear line; no trace, no code, no hang."""

import json
import shutil
from collections import Counter

import pytest
import torch
from helpers.adapters import save_trained_adapter
from safetensors.torch import load_file, save_file

from dsocr.common.errors import explain
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import save_adapter_card
from dsocr.models.adapters import AdapterIdentity
from dsocr.reading.reader import load_reader


CONTENTS = [
    b"",
    b"{",
    b"[]",
    b"{}",
    b"null",
    b"3",
    b'"x"',
    b"\x00\xff\xfe",
    b"[" * 100_000,
    b'{"a": NaN}',
    b"PK\x03\x04",
]
VALUES = [None, -1, 1e400, "x", "", [], [None], {}, {"x": 1}, True]
ADAPTER_FILES = (
    "adapter_config.json",
    "dsocr_adapter.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
)
BASE_FILES = (
    "config.json",
    "generation_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and an adapter on it, as runs write them."""
    torch.manual_seed(0)
    base, adapter = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("adapter")
    model, processor = build_tiny_model("v1")
    model.save_pretrained(base)
    processor.save_pretrained(base)
    trained = save_trained_adapter(model, adapter)
    processor.save_pretrained(adapter)
    save_adapter_card(adapter, trained, AdapterIdentity(str(base), None, processor.to_dict()))
    return base, adapter


def outcome(name, adapter, counts):
    """Load, and count whether it was loaded or refused in one line; anything else is raised."""
    try:
        load_reader(name, adapter)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        assert len(message) < 2000, message[:200]
        counts["refused"] += 1
    else:
        counts["loaded"] += 1


def poisons(path):
    """Contents of a JSON file: damaged as a whole, then with each of its values replaced, taken away, or one added."""
    whole = path.read_bytes()
    yield from CONTENTS
    yield whole[: len(whole) // 2]
    content = json.loads(whole)
    for number, key in enumerate(content):
        # Three kinds of value each, in turn: a long file has keys enough for all of them.
        values = VALUES if len(content) < 10 else [VALUES[(3 * number + n) % len(VALUES)] for n in range(3)]
        yield from (json.dumps(content | {key: value}).encode() for value in values)
        yield json.dumps({other: value for other, value in content.items() if other != key}).encode()
    yield json.dumps(content | {"unknown_key": 1}).encode()


def poison(folders, tmp_path, name, kind):
    base, adapter = folders
    copy = tmp_path / "copy"
    shutil.copytree(adapter if kind == "adapter" else base, copy)
    read = (None, str(copy)) if kind == "adapter" else (str(copy), None)
    counts, traces = Counter(), []
    for content in poisons(copy / name):
        (copy / name).write_bytes(content)
        try:
            outcome(*read, counts)
        except Exception as error:
            traces.append(f"{type(error).__name__}: {str(error)[:150]} for {content[-200:]}")
    (copy / name).unlink()
    outcome(*read, counts)
    print(kind, name, dict(counts))
    assert traces == [] and counts["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTER_FILES)
def test_an_adapter_folder(folders, tmp_path, name):
    poison(folders, tmp_path, name, "adapter")


@pytest.mark.slow
@pytest.mark.parametrize("name", BASE_FILES)
def test_a_base_folder(folders, tmp_path, name):
    poison(folders, tmp_path, name, "base")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["adapter", "base"])
def test_damaged_weights(folders, tmp_path, kind):
    base, adapter = folders
    copy = tmp_path / "copy"
    shutil.copytree(adapter if kind == "adapter" else base, copy)
    read = (None, str(copy)) if kind == "adapter" else (str(copy), None)
    weights = next(copy.glob("*.safetensors"))
    whole, tensors, counts = weights.read_bytes(), load_file(weights), Counter()
    first = sorted(tensors)[0]
    halves, headers = whole[: len(whole) // 2], (b"\xff" * 8 + whole[8:], whole[:20] + b"!" + whole[21:])
    for content in (*CONTENTS, halves, whole[:9], *headers):
        weights.write_bytes(content)
        outcome(*read, counts)
    narrow = tensors[first][..., :1].contiguous()
    for changed in ({}, {first: torch.zeros(3)}, {first: tensors[first].int()}, {**tensors, first: narrow}):
        save_file(changed, weights, metadata={"format": "pt"})
        outcome(*read, counts)
    print(kind, weights.name, dict(counts))
    assert counts["loaded"] == 0


def change_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_rank_that_fills_the_memory_and_an_expression_that_never_ends(folders, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folders[1], copy)
    # Over two minutes with re.fullmatch on each module's name; the expression is not run.
    change_config(copy, target_modules=r"(([a-z_.]|\d)+)+$!")
    assert load_reader(None, str(copy)).model.active_adapter == "default"
    change_config(copy, r=10**7)
    with pytest.raises(ValueError, match="rank 10000000, where the largest side of a tensor is"):
        load_reader(None, str(copy))
