"""Prompt, tokens, saving and loading of the processor."""

import json

import pytest
from helpers.golden import FOLDER
from transformers import LlamaTokenizerFast

from dsocr.lab.tiny import build_byte_tokenizer, build_tiny_model
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.tokenizer import load_tokenizer, split_prompt


def test_a_sample_is_bos_prompt_image_prompt_answer_eos(tiny_v1, lines):
    _, processor = tiny_v1
    sample = processor.prepare(lines[0].image, "Dear  sir")
    tokenizer = processor.tokenizer
    ids, n = sample.input_ids, sample.views.n_tokens
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    assert ids[1 : 1 + n] == [processor.image_token_id] * n
    assert tokenizer.decode(ids[1 + n : sample.prompt_length]) == "\nFree OCR."
    assert tokenizer.decode(ids[sample.prompt_length : -1]) == "Dear  sir"
    assert ids[-1] == tokenizer.eos_token_id and ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("text", ["Ёжик — «ёлка» № 5", "a\nb\tc", "naïve café", "日本", " lead"])
def test_any_text_survives_the_byte_tokenizer(tiny_v1, text):
    processor = tiny_v1[1]
    ids = processor.encode_answer(text)
    assert processor.tokenizer.decode(ids[:-1]) == text


def test_a_russian_letter_is_one_token():
    tokenizer = build_byte_tokenizer()
    assert len(tokenizer.encode("съезд", add_special_tokens=False)) == 5


@pytest.mark.parametrize("token", ["<image>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>", "<｜▁pad▁｜>"])
def test_reserved_tokens_in_a_text_are_refused(tiny_v1, lines, token):
    with pytest.raises(ValueError, match="reserves"):
        tiny_v1[1].prepare(lines[0].image, f"see {token} here")


def test_a_text_that_decoding_would_cut_is_refused(version):
    """Upstream's grounding marks are special tokens in some tokenizers: a perfect reading would come back without them."""
    tokenizer = build_tiny_model(version)[1].tokenizer
    plain = OcrProcessor(tokenizer, version)
    assert plain.decode_answers([plain.encode_answer("a <|ref|>b")]) == ["a <|ref|>b"]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|ref|>"]})
    marked = OcrProcessor(tokenizer, version)
    with pytest.raises(ValueError, match="<.ref.>, which the model reserves"):
        marked.encode_answer("a <|ref|>b")


def test_counting_the_prompt_needs_no_pixels(tiny, rows):
    processor = tiny[1]
    for row in rows[:6]:
        assert processor.count_prompt_tokens(*row["image"].size) == processor.prepare(row["image"]).prompt_length


def test_it_saves_and_loads_with_everything(version, tmp_path):
    _, processor = build_tiny_model(version, image_mode="base")
    processor.save_pretrained(tmp_path)
    again = OcrProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == processor.to_dict()
    assert again.geometry == processor.geometry
    assert again.encode_prompt(3) == processor.encode_prompt(3)
    assert again.encode_answer("съезд 12") == processor.encode_answer("съезд 12")
    other = OcrProcessor.from_pretrained(tmp_path, image_mode="gundam", prompt="<image>\nRead.")
    assert (other.image_mode, other.prompt, other.size_divisor) == ("gundam", "<image>\nRead.", 16)


def test_an_upstream_checkpoint_gets_a_processor_from_its_config(tmp_path):
    build_byte_tokenizer().save_pretrained(tmp_path)
    for version in ("v1", "v2"):
        (tmp_path / "config.json").write_text((FOLDER / version / "config.json").read_text(encoding="utf-8"))
        (tmp_path / "processor_config.json").write_text('{"processor_class": "DeepseekVLV2Processor"}')
        processor = OcrProcessor.from_pretrained(tmp_path)
        assert (processor.version, processor.image_mode, processor.geometry.base_size) == (version, "gundam", 1024)


def test_the_tokenizer_file_is_read_as_it_is(tmp_path):
    """Upstream's tokenizer_config.json names LlamaTokenizerFast, which transformers 5 rebuilds differently."""
    tokenizer = build_byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    config["tokenizer_class"] = "LlamaTokenizerFast"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    text = "Dear  sir,\nсъезд"
    expected = tokenizer.encode(text, add_special_tokens=False)
    assert load_tokenizer(tmp_path).encode(text, add_special_tokens=False) == expected
    assert LlamaTokenizerFast.from_pretrained(tmp_path).encode(text, add_special_tokens=False) != expected


def test_missing_parts_are_named(tmp_path, tiny_v1):
    with pytest.raises(ValueError, match="no config.json"):
        OcrProcessor.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((FOLDER / "v1" / "config.json").read_text(encoding="utf-8"))
    with pytest.raises(ValueError, match="no tokenizer.json"):
        OcrProcessor.from_pretrained(tmp_path)
    tokenizer = build_byte_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(ValueError, match="no pad_token"):
        OcrProcessor(tokenizer)


@pytest.mark.parametrize("prompt", ["no image", "<image><image>", ""])
def test_a_prompt_holds_the_image_once(prompt):
    with pytest.raises(ValueError, match="exactly once"):
        split_prompt(prompt)
