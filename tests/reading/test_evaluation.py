"""Reading by generation."""

import pytest
import torch
from datasets import Dataset

from dsocr.lab.tiny import build_tiny_model
from dsocr.reading.evaluation import evaluate_dataset, evaluate_sets
from dsocr.reading.generation import LOOP_NGRAM, ReadingOptions, transcribe


def test_a_batch_reads_what_single_images_read_in_any_order(tiny, rows):
    model, processor = tiny
    images = [row["image"] for row in rows[:7]]
    options = {"max_new_tokens": 12, "progress": False}
    single = [transcribe(model, processor, [image], ReadingOptions(**options))[0] for image in images]
    assert len(set(single)) > 1
    assert transcribe(model, processor, images, ReadingOptions(batch_size=3, **options)) == single
    assert transcribe(model, processor, images[::-1], ReadingOptions(batch_size=7, **options)) == single[::-1]


def test_the_training_mode_comes_back(tiny_v1, rows):
    model, processor = tiny_v1
    for training in (True, False):
        model.train(training)
        transcribe(model, processor, [rows[0]["image"]], ReadingOptions(max_new_tokens=2, progress=False))
        assert model.training is training


class Stuck(torch.nn.Module):
    """Makes a model say the first of some tokens for ever, or the next one where it is forbidden."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens = tokens

    def forward(self, hidden):
        logits = torch.zeros(*hidden.shape[:2], 326)
        for step, token in enumerate(self.tokens):
            logits[..., token] = 10 - step
        return logits


def test_the_loop_guard_breaks_a_loop(tiny_v1, rows):
    model, processor = tiny_v1
    model.lm_head.forward = Stuck(processor.tokenizer.encode("abcdefg", add_special_tokens=False)).forward
    options = {"max_new_tokens": 60, "progress": False}
    stuck = transcribe(model, processor, [rows[0]["image"]], ReadingOptions(loop_guard=False, **options))[0]
    guarded = transcribe(model, processor, [rows[0]["image"]], ReadingOptions(**options))[0]
    assert stuck == "a" * 60
    assert "a" * (LOOP_NGRAM + 1) not in guarded


def test_image_tokens_are_never_generated(tiny_v1, rows):
    model, processor = tiny_v1
    model.lm_head.forward = Stuck([processor.image_token_id, 40]).forward
    text = transcribe(model, processor, [rows[0]["image"]], ReadingOptions(max_new_tokens=3, progress=False))[0]
    assert text == processor.tokenizer.decode([40] * 3).strip()


def test_shuffled_images_show_each_line_another_ones_image(tiny_v1, rows):
    model, processor = tiny_v1
    read = transcribe(
        model, processor, [row["image"] for row in rows[:4]], ReadingOptions(max_new_tokens=8, progress=False)
    )
    dataset = Dataset.from_dict({"image": [str(i) for i in range(4)], "text": [text or "x" for text in read]})
    shown = dict(zip(dataset["image"], (row["image"] for row in rows[:4]), strict=True))

    class Opened(dict):
        column_names = ("image", "text")

        def __getitem__(self, key):
            value = super().__getitem__(key)
            return [shown[name] for name in value] if key == "image" else value

    content = Opened({"image": list(dataset["image"]), "text": list(dataset["text"])})
    options = {"max_new_tokens": 8, "progress": False}
    assert evaluate_dataset(model, processor, content, ReadingOptions(**options)).predictions == read
    shuffled = evaluate_dataset(model, processor, content, ReadingOptions(**options), shuffle_images=True)
    assert shuffled.predictions == read[1:] + read[:1]


def test_without_the_adapter_it_is_the_base_model(line_folder):
    from peft import LoraConfig, get_peft_model

    from dsocr.data import load_ocr_dataset
    from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS

    model, processor = build_tiny_model("v1")
    sets = {"a": load_ocr_dataset(line_folder, max_samples=3, progress=False)}
    options = {"max_new_tokens": 8, "progress": False}
    expected = evaluate_sets(model, processor, sets, ReadingOptions(**options))["a"].predictions
    peft_model = get_peft_model(model, LoraConfig(target_modules=LANGUAGE_MODEL_TARGETS))
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert evaluate_sets(peft_model, processor, sets, ReadingOptions(**options))["a"].predictions != expected
    assert (
        evaluate_sets(peft_model, processor, sets, ReadingOptions(**options), without_adapter=True)["a"].predictions
        == expected
    )


def test_a_damaged_image_is_named(tiny_v1, tmp_path):
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(ValueError, match="bad.png"):
        transcribe(tiny_v1[0], tiny_v1[1], [tmp_path / "bad.png"], ReadingOptions(progress=False))
