"""Vision features that are computed once: equal to those computed anew, found again, and never taken for another image's."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers.paths import REPOSITORY
from helpers.training import build_trainer, line_dataset, logged_losses, loss_and_gradients
from safetensors.torch import save_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from dsocr.data.training_sets import TrainingSets
from dsocr.lab.tiny import build_tiny_model
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.samples.collator import OcrCollator
from dsocr.samples.vision_cache import building, store
from dsocr.samples.vision_cache import options as cache_options
from dsocr.samples.vision_cache.building import build_feature_cache
from dsocr.samples.vision_cache.options import CacheOptions, choose_cached
from dsocr.samples.vision_cache.store import DiskStore
from dsocr.samples.vision_cache.tower import find_tower, tower_fingerprint


@pytest.fixture
def dataset(tmp_path, rows):
    """Eight lines as files, two of them without tiles."""
    (tmp_path / "images").mkdir()
    paths = []
    for index, row in enumerate(rows[:8]):
        paths.append(str(tmp_path / "images" / f"{index}.png"))
        row["image"].save(paths[-1])
    return Dataset.from_dict({"image": paths, "text": [row["text"] for row in rows[:8]]})


def memory(folder):
    return CacheOptions(run_folder=folder / "fallback")


def disk(folder):
    return CacheOptions(str(folder / "features"))


def build(model, dataset, options, **more):
    return build_feature_cache(*model, [dataset], options, progress=False, batch_size=3, **more)


class Runs:
    """Counts the views that go through the tower itself."""

    def __init__(self, model):
        self.views = 0
        model.model.vision_tower.sam_encoder.register_forward_hook(self._count)

    def _count(self, module, args, output):
        self.views += output.last_hidden_state.shape[0]


class TowerGone(TrainerCallback):
    """Takes the tower's weights away when training begins: nobody can compute anything with it any more."""

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        find_tower(model).to("meta")


@pytest.mark.parametrize("place", [memory, disk])
def test_loss_and_gradients_equal_those_without_the_cache(tmp_path, dataset, version, place):
    trainer = build_trainer(tmp_path, dataset, version=version, eval_dataset=dataset)
    rows = [dataset[index] for index in range(4)]
    loss, plain = loss_and_gradients(trainer, rows)
    assert trainer.cache_features([dataset], place(tmp_path)) is not None
    batch = trainer.data_collator(rows)
    assert batch["pixel_values"].ndim == 3 and batch["pixel_values_local"].ndim == 3
    cached_loss, cached = loss_and_gradients(trainer, rows)
    assert cached_loss == pytest.approx(loss, abs=1e-6)
    assert cached.keys() == plain.keys() and len(plain) > 10
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_a_trained_projector_is_served_too(tmp_path, dataset):
    model, processor = build_tiny_model("v1")
    trainer = build_trainer(tmp_path, dataset, model=(model, processor), lora=False)
    model.model.multi_modal_projector.weight.requires_grad_(True)
    rows = [dataset[index] for index in range(4)]
    _, plain = loss_and_gradients(trainer, rows)
    trainer.cache_features([dataset], memory(tmp_path))
    _, cached = loss_and_gradients(trainer, rows)
    name = "model.multi_modal_projector.weight"
    assert plain[name].abs().max() > 0
    torch.testing.assert_close(cached[name], plain[name], atol=1e-6, rtol=1e-4)


def test_training_and_evaluation_run_without_the_tower(tmp_path, dataset):
    def run(folder, with_cache):
        options = {"num_train_epochs": 2, "learning_rate": 5e-3, "eval_dataset": dataset, "eval_strategy": "epoch"}
        trainer = build_trainer(folder, dataset, **options)
        if with_cache:
            trainer.cache_features([dataset], memory(tmp_path))
            trainer.add_callback(TowerGone())
        trainer.train()
        features = trainer.data_collator.features
        texts = transcribe(
            trainer.model,
            trainer.processing_class,
            list(dataset["image"]),
            ReadingOptions(max_new_tokens=8),
            features=features,
        )
        return logged_losses(trainer), texts, trainer.state.log_history[-2]["eval_cer"]

    plain, cached = run(tmp_path / "a", False), run(tmp_path / "b", True)
    assert cached[0] == pytest.approx(plain[0], abs=1e-4)
    assert cached[1:] == plain[1:]


def test_every_image_goes_through_the_tower_once(tmp_path, dataset):
    model = build_tiny_model("v1")
    runs = Runs(model[0])
    features = build(model, dataset, disk(tmp_path))
    views = runs.views
    assert views == sum(1 + len(features.find(image).tiles) for image in dataset["image"])
    # A second run finds them, whatever the files are called.
    moved = tmp_path / "moved.png"
    os.rename(dataset["image"][0], moved)
    again = Dataset.from_dict({"image": [str(moved), *dataset["image"][1:]]})
    assert build(model, again, disk(tmp_path)).find(str(moved)) is not None
    assert runs.views == views


def test_features_of_another_model_mode_or_layout_are_not_taken(tmp_path, dataset, caplog):
    caplog.set_level("INFO")
    build(build_tiny_model("v1"), dataset, disk(tmp_path))
    for other in (build_tiny_model("v1", seed=1), build_tiny_model("v1", image_mode="base")):
        runs = Runs(other[0])
        caplog.clear()
        build(other, dataset, disk(tmp_path))
        assert runs.views >= len(dataset)
        assert "of another model or image mode" in caplog.text


def test_one_changed_weight_changes_the_fingerprint():
    model, _ = build_tiny_model("v1")
    before = tower_fingerprint(model)
    assert before == tower_fingerprint(build_tiny_model("v1")[0])
    with torch.no_grad():
        find_tower(model).sam_encoder.neck.conv1.weight.view(-1)[3] += 1e-3
    assert tower_fingerprint(model) != before


def test_an_image_that_changes_is_noticed(tmp_path, dataset):
    model = build_tiny_model("v1")
    features = build(model, dataset, disk(tmp_path))
    first, second = dataset["image"][:2]
    os.replace(second, first)
    with pytest.raises(ValueError, match=r"0\.png: the file has changed .*--vision_cache off"):
        features.find(first)
    # A new run sees what is there now.
    new = Dataset.from_dict({"image": [first]})
    assert torch.equal(
        build(model, new, disk(tmp_path)).find(first).global_view,
        features.store.get(features.known[second][0]).global_view,
    )


def test_images_as_bytes(tmp_path, dataset):
    contents = [{"bytes": Path(path).read_bytes(), "path": None} for path in dataset["image"]]
    hub = Dataset.from_dict({"image": contents, "text": dataset["text"]})
    model = build_tiny_model("v1")
    features = build(model, hub, memory(tmp_path))
    batch = OcrCollator(model[1], features=features)([hub[0], hub[1]])
    assert batch["pixel_values"].ndim == 3


def test_a_batch_with_an_unknown_image_is_looked_at_whole(tmp_path, dataset):
    model = build_tiny_model("v1")
    features = build(model, dataset.select(range(4)), memory(tmp_path))
    collate = OcrCollator(model[1], features=features)
    assert collate([dataset[0], dataset[1]])["pixel_values"].ndim == 3
    assert collate([dataset[0], dataset[5]])["pixel_values"].ndim == 4
    assert OcrCollator(model[1], features=features, augment=True)([dataset[0]])["pixel_values"].ndim == 4


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_workers_map_the_same_files(tmp_path, dataset, start_method):
    model = build_tiny_model("v1")
    collate = OcrCollator(model[1], features=build(model, dataset, disk(tmp_path)))
    assert collate([dataset[0]])["pixel_values"].ndim == 3
    rows = [dataset[index] for index in range(8)]
    loader = DataLoader(rows, batch_size=4, num_workers=2, collate_fn=collate, multiprocessing_context=start_method)
    for found, start in zip(loader, (0, 4), strict=True):
        assert torch.equal(found["pixel_values"], collate(rows[start : start + 4])["pixel_values"])


def test_what_a_killed_process_left_is_swept_away(tmp_path, dataset, caplog):
    model = build_tiny_model("v1")
    features = build(model, dataset, disk(tmp_path))
    folder = features.store.folder
    (path,) = folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    stale = folder / "dead.part"
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    fresh = folder / "alive.part"
    fresh.write_bytes(b"half")
    runs = Runs(model[0])
    assert build(model, dataset, disk(tmp_path)).find(dataset["image"][0]) is not None
    assert runs.views > 0 and "is damaged" in caplog.text
    assert not stale.exists() and fresh.exists()


def test_the_features_of_a_single_image_are_not_copied(tmp_path, dataset):
    model = build_tiny_model("v1")
    features = build(model, dataset, CacheOptions())
    collate = OcrCollator(model[1], torch.uint8, features=features)
    row = next(row for row in dataset if len(features.find(row["image"]).tiles))
    held, batch = features.find(row["image"]), collate([row])
    assert batch["pixel_values"].data_ptr() == held.global_view.data_ptr()
    assert batch["pixel_values_local"].data_ptr() == held.tiles.data_ptr()


def test_flipped_bits_and_foreign_files_are_noticed(tmp_path, dataset, caplog):
    model = build_tiny_model("v1")
    folder = build(model, dataset, disk(tmp_path)).store.folder
    (path,) = folder.glob("*.safetensors")
    save_file({"x": torch.zeros(2)}, folder / "foreign.safetensors", metadata={"format": "pt"})
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    store = DiskStore(folder)
    assert "foreign.safetensors holds no vision features of this version" in caplog.text
    keys = list(store._places)
    with pytest.raises(ValueError, match="was damaged after it was written. Delete it"):
        for key in keys:
            store.get(key)


def test_an_interrupted_run_goes_on(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(building, "_IMAGES_PER_FILE", 3)
    model = build_tiny_model("v1")
    real, calls = DiskStore.add, []

    def add(self, items):
        calls.append(len(items))
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, items)

    monkeypatch.setattr(DiskStore, "add", add)
    with pytest.raises(KeyboardInterrupt):
        build(model, dataset, disk(tmp_path))
    runs = Runs(model[0])
    features = build(model, dataset, disk(tmp_path))
    assert calls == [3, 3, 3, 2]
    assert 0 < runs.views < sum(1 + len(features.find(image).tiles) for image in dataset["image"])


def test_a_budget_that_is_too_small_goes_to_disk_and_a_full_disk_goes_without(tmp_path, dataset, caplog, monkeypatch):
    caplog.set_level("INFO")
    model = build_tiny_model("v1")
    monkeypatch.setattr(cache_options, "MEMORY_BYTES", 10.0)
    features = build(model, dataset, memory(tmp_path))
    assert isinstance(features.store, DiskStore) and "that may stay in memory: on disk" in caplog.text
    monkeypatch.setattr(cache_options.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    assert build(build_tiny_model("v1", seed=3), dataset, disk(tmp_path)) is None
    assert "Name a roomier folder with --vision_cache" in caplog.text


def test_a_disk_that_fills_up_and_a_folder_that_cannot_be_made(tmp_path, dataset, caplog, monkeypatch):
    model = build_tiny_model("v1")
    (tmp_path / "features").write_text("a file")
    assert build(model, dataset, disk(tmp_path)) is None
    assert "every epoch runs the vision tower again" in caplog.text
    (tmp_path / "features").unlink()

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    assert build(model, dataset, disk(tmp_path)) is None
    assert "No space left" in caplog.text and not list((tmp_path / "features").rglob("*.part"))
    # The run itself goes on without.
    trainer = build_trainer(tmp_path / "run", dataset, max_steps=1)
    assert trainer.cache_features([dataset], disk(tmp_path)) is None
    trainer.train()


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path, lines):
    dataset = line_dataset(tmp_path / "data", lines[:12])
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 5e-3}
    single = build_trainer(tmp_path / "single", dataset, **options)
    single.train()
    config = str(REPOSITORY / "accelerate_configs" / "cpu_ddp.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", "0"]
    script, result, folder = (
        str(REPOSITORY / "tests" / "helpers" / "ddp_script.py"),
        tmp_path / "two.json",
        tmp_path / "features",
    )
    subprocess.run([*launch, script, str(tmp_path / "data"), str(result), "2", str(folder)], check=True)
    double = json.loads(result.read_text(encoding="utf-8"))
    assert double["processes"] == 2
    assert double["losses"] == pytest.approx(logged_losses(single), abs=1e-5)
    # A file of each process, and no image twice.
    (held,) = folder.iterdir()
    assert len(list(held.glob("*.safetensors"))) == 2 and len(DiskStore(held)._places) == 12


def test_only_what_is_read_again_is_cached(dataset, caplog):
    caplog.set_level("INFO")
    sets = TrainingSets(dataset, dataset.select([0]), {"extra": dataset.select([1])})
    model, _ = build_tiny_model("v1")
    find_tower(model).requires_grad_(False)
    assert choose_cached(sets, model, CacheOptions()) == [sets.held_out, sets.extra["extra"], sets.train]
    for options in (CacheOptions(augment=True), CacheOptions(train_again=False)):
        assert choose_cached(sets, model, options) == [sets.held_out, sets.extra["extra"]]
    assert choose_cached(sets, model, CacheOptions("off")) == []
    find_tower(model).sam_encoder.neck.conv1.weight.requires_grad_(True)
    assert choose_cached(sets, model, CacheOptions()) == []
    assert "the vision tower is trained" in caplog.text


def test_a_trained_tower_is_refused(tmp_path, dataset):
    trainer = build_trainer(tmp_path, dataset, lora=False, freeze=False)
    with pytest.raises(ValueError, match="the vision tower is trained"):
        trainer.cache_features([dataset], memory(tmp_path))


def test_a_cached_collator_can_be_pickled(tmp_path, dataset):
    model = build_tiny_model("v1")
    collate = OcrCollator(model[1], features=build(model, dataset, disk(tmp_path)))
    collate([dataset[0]])
    assert pickle.loads(pickle.dumps(collate))([dataset[0]])["pixel_values"].ndim == 3
