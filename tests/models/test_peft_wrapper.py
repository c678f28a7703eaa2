"""The PEFT-safe wrapper."""

import copy
import pickle

import pytest
import torch
from helpers.training import TASK_TYPES
from peft import LoraConfig, get_peft_model

from dsocr.lab.packing import quantize_model
from dsocr.lab.tiny import build_tiny_model
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.models.peft_wrapper import find_guard, make_peft_safe, remove_peft_safe
from dsocr.samples.collator import OcrCollator


@pytest.fixture
def guarded(tiny_v1):
    model, processor = tiny_v1
    return make_peft_safe(model), processor


@pytest.fixture
def batch(guarded, rows):
    return OcrCollator(guarded[1])(rows[:3])


def test_the_same_object_with_the_same_names_comes_back(tiny):
    model, _ = tiny
    names, forward = list(model.state_dict()), model.forward.__func__
    assert make_peft_safe(model) is model
    assert list(model.state_dict()) == names
    assert model.forward.__func__ is forward
    assert model.generate.__self__ is model


def test_applying_twice_changes_nothing_and_it_can_be_removed(guarded, batch):
    model, _ = guarded
    make_peft_safe(model)
    assert len(model._forward_pre_hooks) == 1
    remove_peft_safe(model)
    assert not model._forward_pre_hooks and not model._forward_pre_hooks_with_kwargs
    assert find_guard(model) is None
    with torch.no_grad():
        model(**batch, decoder_input_ids=None)


def test_it_refuses_a_peft_model(guarded):
    model = get_peft_model(guarded[0], LoraConfig(target_modules=LANGUAGE_MODEL_TARGETS))
    with pytest.raises(TypeError, match="before PEFT"):
        make_peft_safe(model)
    assert find_guard(model) is not None


def test_seq2seq_keywords_are_dropped_counted_and_warned_about_once(guarded, batch, caplog):
    model, _ = guarded
    with torch.no_grad():
        expected = model(**batch).logits
        for _ in range(2):
            ids = batch["input_ids"]
            outputs = model(**batch, decoder_input_ids=ids, decoder_attention_mask=None, start_positions=ids[:, 0])
    assert torch.equal(outputs.logits, expected)
    counts = find_guard(model).counts()
    assert counts["dropped"] == {"decoder_input_ids": 2, "decoder_attention_mask": 2, "start_positions": 2}
    assert caplog.text.count("dropped decoder_input_ids") == 1
    assert "decoder_attention_mask:" not in caplog.text


def test_an_unknown_keyword_raises_where_the_native_model_would_swallow_it(guarded, batch):
    model, _ = guarded
    with pytest.raises(TypeError, match="'pixel_value'"):
        model(**batch, pixel_value=batch["pixel_values"])
    remove_peft_safe(model)
    with torch.no_grad():
        model(**batch, pixel_value=batch["pixel_values"])


def test_aliases_reach_the_native_inputs(guarded, batch):
    model, _ = guarded
    renamed = dict(batch)
    renamed["images"] = renamed.pop("pixel_values")
    renamed["images_crop"] = renamed.pop("pixel_values_local")
    grids = renamed.pop("patches_grid")
    del renamed["num_local_patches"]
    renamed["images_spatial_crop"] = torch.tensor(grids)
    with torch.no_grad():
        assert torch.equal(model(**renamed).logits, model(**batch).logits)
    assert find_guard(model).counts()["renamed"] == {"images": 1, "images_crop": 1, "images_spatial_crop": 1}


def test_an_alias_beside_its_native_name_and_upstreams_pairs_are_refused(guarded, batch):
    model, _ = guarded
    with pytest.raises(TypeError, match="given twice"):
        model(**batch, images=batch["pixel_values"])
    pairs = dict(batch)
    pairs["images"] = [(pairs.pop("pixel_values_local"), pairs.pop("pixel_values"))]
    with pytest.raises(TypeError, match="list of .tiles, view. pairs"):
        model(**pairs)


def test_generate_leaves_validation_to_the_library(guarded):
    model, processor = guarded
    inputs = processor(images=[torch_image()])
    with pytest.raises(ValueError, match="nonsense"):
        model.generate(**inputs, nonsense=1, max_new_tokens=2)


def torch_image():
    from PIL import Image

    return Image.new("RGB", (120, 40), "white")


def test_deepcopy_and_pickle(guarded, batch):
    model, _ = guarded
    with torch.no_grad():
        expected = model(**batch).logits
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied(**batch, decoder_input_ids=None).logits, expected)
            assert find_guard(copied).dropped["decoder_input_ids"] == 1
    assert find_guard(model).dropped["decoder_input_ids"] == 0


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_every_task_type_passes_the_forward(task_type, rows):
    model, processor = build_tiny_model("v1")
    batch = OcrCollator(processor)(rows[:2])
    with torch.no_grad():
        expected = model(**batch)
    peft_model = get_peft_model(
        make_peft_safe(model), LoraConfig(r=2, task_type=task_type, target_modules=LANGUAGE_MODEL_TARGETS)
    )
    extra = {"start_positions": batch["input_ids"][:, 0]} if task_type == "QUESTION_ANS" else {}
    with torch.no_grad():
        outputs = peft_model(**batch, **extra)
    assert torch.equal(outputs.logits, expected.logits)
    assert torch.equal(outputs.loss, expected.loss)
    with torch.no_grad():
        other = dict(
            batch, pixel_values=batch["pixel_values"].flip(-1), pixel_values_local=-batch["pixel_values_local"]
        )
        assert peft_model(**other, **extra).loss != expected.loss


def test_what_peft_adds_for_seq2seq_is_dropped_by_the_guard(rows):
    model, processor = build_tiny_model("v1")
    peft_model = get_peft_model(
        make_peft_safe(model), LoraConfig(r=2, task_type="SEQ_2_SEQ_LM", target_modules=LANGUAGE_MODEL_TARGETS)
    )
    with torch.no_grad():
        peft_model(**OcrCollator(processor)(rows[:1]))
    assert set(find_guard(peft_model).dropped) == {
        "decoder_input_ids",
        "decoder_attention_mask",
        "decoder_inputs_embeds",
    }


def test_generate_before_and_after_lora_and_merging(guarded, rows):
    model, processor = guarded
    inputs = processor(images=[row["image"] for row in rows[:3]])
    options = {"max_new_tokens": 12, "do_sample": False}
    before = model.generate(**inputs, **options)
    peft_model = get_peft_model(
        model, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=LANGUAGE_MODEL_TARGETS)
    ).eval()
    assert torch.equal(peft_model.generate(**inputs, **options), before)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    changed = peft_model.generate(**inputs, **options)
    assert not torch.equal(changed, before)
    merged = peft_model.merge_and_unload()
    assert torch.equal(merged.generate(**inputs, **options), changed)
    assert find_guard(merged) is not None


def test_adapter_keys_are_those_of_an_unguarded_model(tmp_path):
    from safetensors import safe_open

    keys = []
    for wrap in (make_peft_safe, lambda model: model):
        model = get_peft_model(wrap(build_tiny_model("v1")[0]), LoraConfig(target_modules=LANGUAGE_MODEL_TARGETS))
        folder = tmp_path / str(len(keys))
        model.save_pretrained(folder)
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
            keys.append(sorted(file.keys()))
    assert keys[0] == keys[1]


def test_gradient_checkpointing_gives_the_same_gradients(rows):
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model, processor = build_tiny_model("v1")
        make_peft_safe(model)
        peft_model = get_peft_model(
            model, LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=LANGUAGE_MODEL_TARGETS)
        ).train()
        if checkpointing:
            peft_model.enable_input_require_grads()
            peft_model.activation_checkpointing_enable()
        peft_model(**OcrCollator(processor)(rows[:2])).loss.backward()
        gradients.append({n: p.grad for n, p in peft_model.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], atol=1e-6), name


def test_four_bit(rows):
    model, processor = build_tiny_model("v1")
    quantize_model(model)
    peft_model = get_peft_model(
        make_peft_safe(model), LoraConfig(r=2, task_type="SEQ_2_SEQ_LM", target_modules=LANGUAGE_MODEL_TARGETS)
    )
    peft_model(**OcrCollator(processor)(rows[:2])).loss.backward()
    assert find_guard(peft_model).dropped["decoder_input_ids"] == 1
    assert all(p.grad is not None for p in peft_model.parameters() if p.requires_grad)
