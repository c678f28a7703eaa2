"""The tiny models."""

import torch

from dsocr.lab.tiny import build_tiny_model
from dsocr.models import load_model
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.tokenizer import BOS, EOS, PAD


def test_they_save_and_load(tiny, tmp_path):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    expected = dict(model.named_parameters())
    assert all(torch.equal(parameter, expected[name]) for name, parameter in again.named_parameters())
    assert OcrProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_control_tokens_have_upstreams_names_and_ids(tiny_v1):
    tokenizer = tiny_v1[1].tokenizer
    assert tokenizer.convert_tokens_to_ids([BOS, EOS, PAD]) == [0, 1, 2]
    assert tokenizer.convert_tokens_to_ids("<image>") == tiny_v1[0].config.image_token_id


def test_no_denormals_and_reproducible(version):
    model, _ = build_tiny_model(version)
    smallest = torch.finfo(torch.float32).tiny
    for name, parameter in model.named_parameters():
        values = parameter.detach().abs()
        assert not ((values > 0) & (values < smallest)).any(), name
    again = dict(build_tiny_model(version)[0].named_parameters())
    assert all(torch.equal(parameter, again[name]) for name, parameter in model.named_parameters())


def test_images_matter_at_initialisation(tiny_v1, rows):
    """A language model cannot learn to read features that hardly differ from image to image."""
    model, processor = tiny_v1
    inputs = processor(images=[rows[1]["image"], rows[2]["image"]])
    names = ("pixel_values", "pixel_values_local", "num_local_patches", "patches_grid")
    with torch.no_grad():
        one, two = model.get_image_features(**{k: inputs[k] for k in names}, return_dict=True).pooler_output
    assert (one - two).pow(2).mean() / torch.cat([one, two]).var() > 0.05


def test_dimensions_suit_four_bit_blocks(tiny_v1):
    for name, parameter in tiny_v1[0].model.language_model.named_parameters():
        if parameter.ndim >= 2 and "embed" not in name and "gate.weight" not in name:
            assert all(size % 64 == 0 for size in parameter.shape[-2:]), name
