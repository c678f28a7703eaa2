"""What makes training faster changes no number."""

import copy
import subprocess

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.training import build_trainer, line_dataset, loss_and_gradients
from PIL import Image
from transformers.trainer_pt_utils import LengthGroupedSampler
from trl.kernels import chunked_logprob

from dsocr.cli.training import recipe_defaults
from dsocr.data import load_ocr_dataset
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import sam_attention
from dsocr.models.sam_attention import split_global_attention
from dsocr.samples.collator import OcrCollator
from dsocr.samples.lengths import add_lengths
from dsocr.samples.processor import OcrProcessor
from dsocr.training.compact_head import try_triton


@pytest.fixture
def dataset(tmp_path, lines):
    return line_dataset(tmp_path / "data", lines)


@pytest.mark.parametrize("options", [{}, {"router_aux_loss_coef": 0.01}, {"activation_checkpointing": True}])
def test_the_compact_head_changes_nothing_but_the_work(tmp_path, dataset, version, options):
    trainer = build_trainer(tmp_path, dataset, version=version, **options)
    rows = [dataset[index] for index in range(3)]
    trainer.model.train()
    scored = []
    hook = trainer.model.get_base_model().base_model.register_forward_hook(
        lambda module, args, output: scored.append(output.last_hidden_state.shape[1])
    )
    loss, gradients = loss_and_gradients(trainer, rows)
    hook.remove()
    answers = sum(len(trainer.processing_class.encode_answer(row["text"])) for row in rows)
    # The fused head is at work, and on the answers alone.
    assert scored == [answers]
    compacted = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    trainer._head.compact = lambda inputs: inputs
    plain_loss, plain = loss_and_gradients(trainer, rows)
    assert loss == pytest.approx(plain_loss, abs=1e-6)
    for name, gradient in plain.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    for name in ("entropy", "mean_token_accuracy"):
        assert compacted[name] == pytest.approx(trainer._metrics["train"][name][-1], abs=1e-5)


def test_a_batch_without_any_label_still_has_a_gradient(tmp_path, dataset):
    trainer = build_trainer(tmp_path, dataset)
    batch = trainer._prepare_inputs(trainer.data_collator([dataset[0]]))
    batch["labels"].fill_(-100)
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    assert float(loss) == 0


def test_no_position_but_the_answers_meets_the_vocabulary(tmp_path, dataset):
    trainer = build_trainer(tmp_path, dataset)
    seen = []
    head = trainer.model.get_base_model().base_model
    head.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state.shape))
    rows = [dataset[index] for index in range(4)]
    batch = trainer.data_collator(rows)
    trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    labelled = int((batch["labels"] != -100).sum())
    assert seen == [(1, labelled, 64)] and labelled < batch["input_ids"].numel() / 3


@pytest.mark.parametrize("pieces", [1, 3, 16])
def test_global_attention_in_pieces_is_the_native_one(version, pieces, monkeypatch, rows):
    model, processor = build_tiny_model(version)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            torch.nn.init.normal_(parameter)
    batch = processor(images=[row["image"] for row in rows[:4]])
    pixels = batch["pixel_values"].requires_grad_(True)
    native = model.model.vision_tower(pixels).last_hidden_state
    (expected,) = torch.autograd.grad(native.square().sum(), pixels)
    side = pixels.shape[-1] // 4
    heads = model.model.vision_tower.sam_encoder.layers[0].attn.num_attention_heads
    whole = len(pixels) * heads * side**4 * 4
    monkeypatch.setattr(sam_attention, "PIECE_BYTES", whole // pieces)
    assert split_global_attention(model) == split_global_attention(model) >= 1
    found = model.model.vision_tower(pixels).last_hidden_state
    torch.testing.assert_close(found, native, atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found.square().sum(), pixels)
    assert (gradient - expected).abs().max() < 1e-4 * expected.abs().max()


def test_a_copy_of_a_split_model_is_independent(rows):
    model, processor = build_tiny_model("v1")
    split_global_attention(model)
    batch = processor(images=[rows[0]["image"]])
    expected = model(**batch).logits
    clone = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.data.zero_()
    assert torch.equal(clone(**batch).logits, expected)


def padding_share(batches):
    """The share of all positions that is padding, when each batch is padded to its longest sample."""
    return 1 - sum(map(sum, batches)) / sum(max(lengths) * len(lengths) for lengths in batches)


def test_batches_of_like_length_have_little_padding(tmp_path):
    """Lines of 2 to 40 characters and 1 to 9 tiles; random batches waste a quarter."""
    rng = np.random.default_rng(0)
    processor = build_tiny_model("v1")[1]
    rows = {"image": [], "text": []}
    for index in range(400):
        width = int(rng.integers(30, 400))
        path = tmp_path / f"{index}.png"
        Image.linear_gradient("L").resize((width, 32)).save(path)
        rows["image"].append(str(path))
        rows["text"].append("x" * int(rng.integers(2, 40)))
    dataset = add_lengths(Dataset.from_dict(rows), processor, "length")
    collate = OcrCollator(processor)
    assert [int(collate([row])["attention_mask"].sum()) for row in dataset] == list(dataset["length"])
    shares = {}
    for strategy in ("random", "group_by_length"):
        trainer = build_trainer(
            tmp_path,
            dataset,
            per_device_train_batch_size=8,
            train_sampling_strategy=strategy,
            remove_unused_columns=False,
        )
        lengths = [batch["attention_mask"].sum(dim=1).tolist() for batch in trainer.get_train_dataloader()]
        assert sum(map(len, lengths)) == 400
        shares[strategy] = padding_share(lengths)
    assert shares["group_by_length"] < 0.1 < shares["random"]


def test_the_recipe_groups_by_length_and_says_the_padding(tmp_path, dataset):
    assert recipe_defaults()["train_sampling_strategy"] == "group_by_length"
    options = {"eval_dataset": dataset.select(range(4)), "train_sampling_strategy": "group_by_length"}
    trainer = build_trainer(tmp_path, dataset, max_steps=2, **options)
    assert min(trainer.train_dataset["length"]) > 0
    trainer.train()
    assert trainer.evaluate()["eval_cer"] >= 0
    assert all(0 <= entry["padding_share"] < 1 for entry in trainer.state.log_history if "loss" in entry)


def test_padding_of_the_real_lines_is_what_the_readme_says(shared):
    base = build_tiny_model("v1")[1]
    processor = OcrProcessor(base.tokenizer, "v1", "gundam")
    dataset = add_lengths(load_ocr_dataset(shared / "data" / "stanford1905", progress=False), processor, "length")
    lengths, shares = list(dataset["length"]), {}
    random_order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
    grouped = list(LengthGroupedSampler(8, lengths=lengths, generator=torch.Generator().manual_seed(0)))
    for name, order in (("random", random_order), ("grouped", grouped)):
        shares[name] = padding_share([[lengths[i] for i in order[k : k + 8]] for k in range(0, len(order), 8)])
    assert shares["random"] == pytest.approx(0.16, abs=0.02) and shares["grouped"] == pytest.approx(0.03, abs=0.01)


@pytest.mark.parametrize("works", [True, False])
def test_a_head_that_cannot_be_compiled_is_replaced_before_the_first_step(monkeypatch, caplog, works):
    """Triton compiles at its first call; here it is said to be there, and its kernels are stand-ins."""
    monkeypatch.setattr(chunked_logprob, "_TRITON_AVAILABLE", True)
    monkeypatch.setattr(chunked_logprob, "_use_triton", lambda device: chunked_logprob._TRITON_AVAILABLE)

    class Head:
        @staticmethod
        def apply(rows, *others):
            if not works:
                raise subprocess.CalledProcessError(1, ["gcc", "main.c", "-o", "cuda_utils.so"])
            return (rows.sum(1),)

    monkeypatch.setattr(chunked_logprob, "ChunkedLogProbFunction", Head)
    assert try_triton(torch.device("cpu")) is works
    assert chunked_logprob._TRITON_AVAILABLE is works
    assert ("Triton does not work here (CalledProcessError" in caplog.text) is not works
