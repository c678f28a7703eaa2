"""Batches."""

import gc
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from dsocr.lab.tiny import build_tiny_model
from dsocr.samples.collator import IGNORED, OcrCollator
from dsocr.samples.vision_cache.tower import extend_tower


@pytest.mark.parametrize("size", [1, 2, 5])
def test_labels_are_the_answer_and_one_eos(tiny, rows, size):
    _, processor = tiny
    batch = OcrCollator(processor)(rows[:size])
    for row, labels, mask, ids in zip(rows, batch["labels"], batch["attention_mask"], batch["input_ids"], strict=False):
        trained = labels[labels != IGNORED].tolist()
        assert trained == processor.encode_answer(row["text"])
        length = int(mask.sum())
        assert mask[:length].all() and (ids[length:] == processor.tokenizer.pad_token_id).all()
        assert (labels[length:] == IGNORED).all()
        assert labels[length - 1] == processor.tokenizer.eos_token_id


def test_generation_batches_are_padded_on_the_left_without_answer(tiny_v1, rows):
    _, processor = tiny_v1
    batch = OcrCollator(processor, for_generation=True)(rows[:5])
    assert "labels" not in batch
    assert batch["attention_mask"][:, -1].all()
    assert (batch["attention_mask"].diff(dim=1) >= 0).all()


def test_mixed_tiles_give_each_image_its_own_features(tiny, rows):
    """Every row of a mixed batch has the logits it has alone."""
    model, processor = tiny
    collate = OcrCollator(processor)
    batch = collate(rows[:5])
    assert 0 in batch["num_local_patches"] and max(batch["num_local_patches"]) > 0
    with torch.no_grad():
        together = model(**batch).logits
        for index in range(5):
            single = collate(rows[index : index + 1])
            alone = model(**single).logits[0]
            assert torch.allclose(together[index, : alone.shape[0]], alone, atol=1e-4)


def test_no_tiles_at_all(tiny_v1, rows):
    model, processor = tiny_v1
    batch = OcrCollator(processor)([rows[0], rows[4]])
    assert "pixel_values_local" not in batch
    assert torch.isfinite(model(**batch).loss)


def test_pixels_are_in_the_models_type_and_range(tiny_v1, rows):
    for dtype in (torch.float32, torch.bfloat16):
        batch = OcrCollator(tiny_v1[1], dtype=dtype)(rows[:3])
        assert batch["pixel_values"].dtype == batch["pixel_values_local"].dtype == dtype
        assert batch["pixel_values"].min() >= -1 and batch["pixel_values"].max() <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_of_8_bit_give_the_same_loss(tiny, rows, dtype):
    model, processor = tiny[0].to(dtype), tiny[1]
    grey = [{**row, "image": row["image"].convert("L").convert("RGB")} for row in rows[:4]]
    coloured = [{**row, "image": ImageOps.colorize(row["image"].convert("L"), "navy", "beige")} for row in rows[:4]]
    for batch in (coloured, grey, [coloured[0], grey[1], grey[2]]):
        plain = OcrCollator(processor, dtype=dtype)(batch)
        small = OcrCollator(processor, dtype=torch.uint8)(batch)
        assert small["pixel_values"].dtype == small["pixel_values_local"].dtype == torch.uint8
        assert small["pixel_values"].shape[-1] == (1 if batch is grey else 3)
        with torch.no_grad():
            expected = model(**plain).loss
            extend_tower(model)
            assert torch.equal(model(**small).loss, expected)


def test_an_overlong_sample_is_refused_with_its_name_and_both_lengths(tiny_v1, line_folder):
    _, processor = tiny_v1
    path = str(line_folder / "images" / "000001.png")
    prompt = processor.prepare(path).prompt_length
    collate = OcrCollator(processor, max_length=prompt + 3)
    with pytest.raises(ValueError, match=rf"000001.png: {prompt} prompt and image tokens \+ 8 answer tokens"):
        collate([{"image": path, "text": "sevenab"}])
    assert collate([{"image": path, "text": "ab"}])["input_ids"].shape == (1, prompt + 3)


def test_collators_can_be_pickled(rows):
    collate = OcrCollator(build_tiny_model("v1")[1])
    again = pickle.loads(pickle.dumps(collate))
    assert torch.equal(again(rows[:2])["input_ids"], collate(rows[:2])["input_ids"])


@pytest.mark.slow
def test_memory_stays_flat_over_5000_samples(tmp_path):
    processor = build_tiny_model("v1", image_mode="base")[1]
    lines = []
    for index in range(20):
        path = tmp_path / f"{index}.png"
        Image.fromarray(np.random.default_rng(index).integers(0, 255, (20, 80, 3), dtype=np.uint8)).save(path)
        lines.append({"image": str(path), "text": f"line {index}"})
    loader = DataLoader(lines * 250, batch_size=8, collate_fn=OcrCollator(processor))
    tracemalloc.start()
    measured = []
    for step, batch in enumerate(loader):  # noqa: B007
        if step % 125 == 124:
            gc.collect()
            # numpy and Python; torch's own tensors are counted one by one.
            held = sum(t.untyped_storage().nbytes() for t in gc.get_objects() if isinstance(t, torch.Tensor))
            measured.append((tracemalloc.get_traced_memory()[0], held))
    tracemalloc.stop()
    assert step == 624 and batch["input_ids"].shape[0] == 8
    (traced, tensors), (traced_later, tensors_later) = measured[0], measured[-1]
    assert traced_later - traced < 100_000
    assert tensors_later == tensors
