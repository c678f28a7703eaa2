"""Training under TRL's SFTTrainer: images used, adapters saved and resumed, overfitting to zero errors."""

import json
import os
import signal

import pytest
import torch
from helpers.adapters import shipped_rules
from helpers.training import TASK_TYPES, build_trainer, line_dataset, logged_losses
from PIL import Image
from transformers import EarlyStoppingCallback, TrainerCallback

from dsocr.cli.training import recipe_defaults
from dsocr.common.errors import TrainingDivergedError
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import load_adapter, load_model
from dsocr.models.peft_wrapper import find_guard
from dsocr.reading.evaluation import evaluate_dataset
from dsocr.reading.generation import ReadingOptions, transcribe
from dsocr.samples.processor import OcrProcessor
from dsocr.training.callbacks import InterruptCallback


@pytest.fixture
def dataset(tmp_path, lines):
    return line_dataset(tmp_path / "data", lines)


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_every_task_type_trains_with_its_images(tmp_path, dataset, task_type):
    losses = []
    for shift in (0, 1):
        images = dataset["image"][shift:] + dataset["image"][:shift]
        shown = dataset.remove_columns("image").add_column("image", images)
        trainer = build_trainer(tmp_path / str(shift), shown, task_type=task_type, max_steps=2, seed=1)
        before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        losses.append(logged_losses(trainer))
        moved = [n for n, p in trainer.model.named_parameters() if p.requires_grad and not torch.equal(p, before[n])]
        assert any("lora_B" in name for name in moved)
        assert all(not p.requires_grad for n, p in trainer.model.named_parameters() if "vision_tower" in n)
    assert losses[0] != losses[1], "another line's image must change the loss"
    guard = find_guard(trainer.model)
    assert bool(guard.dropped) == (task_type in ("SEQ_2_SEQ_LM", "QUESTION_ANS"))


def test_v2_trains(tmp_path, dataset):
    trainer = build_trainer(tmp_path, dataset, version="v2", max_steps=3, learning_rate=5e-3)
    trainer.train()
    losses = logged_losses(trainer)
    assert losses[-1] < losses[0]


def test_activation_checkpointing_does_not_change_the_losses(tmp_path, dataset):
    losses = []
    for checkpointing in (False, True):
        trainer = build_trainer(tmp_path, dataset, max_steps=3, activation_checkpointing=checkpointing)
        trainer.train()
        losses.append(logged_losses(trainer))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_tower_is_run_without_gradient_and_no_gradient_changes(tmp_path, dataset, freeze):
    """Take `freeze_vision` away and checkpointing sends gradients through the frozen tower."""
    trainer = build_trainer(tmp_path, dataset, freeze=freeze, activation_checkpointing=True, max_steps=1)
    if not freeze:
        for name, parameter in trainer.model.named_parameters():
            parameter.requires_grad_("lora_" in name)
    seen = []
    tower = trainer.model.get_base_model().model.vision_tower
    tower.register_forward_hook(lambda module, args, output: seen.append(output.last_hidden_state.requires_grad))
    trainer.train()
    assert seen and all(flag is not freeze for flag in seen)


def test_save_and_load_on_a_bare_model(tmp_path, dataset, version):
    trainer = build_trainer(tmp_path / "run", dataset, version=version, max_steps=3, learning_rate=1e-2)
    trainer.train()
    trainer.save_model(tmp_path / "run")
    batch = trainer.data_collator([dataset[i] for i in range(3)])
    trainer.model.eval()
    # `fused_lm_head` is TRL's; the plain forward is what a user of the adapter calls.
    with torch.no_grad():
        expected = trainer.model(**batch).logits
    bare, _ = build_tiny_model(version)
    with torch.no_grad():
        untrained = bare(**batch).logits
        loaded = load_adapter(bare, tmp_path / "run").eval()(**batch).logits
    assert torch.equal(loaded, expected) and not torch.allclose(untrained, expected, atol=1e-3)
    processor = OcrProcessor.from_pretrained(tmp_path / "run")
    assert processor.to_dict() == trainer.processing_class.to_dict()


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
        return control


def test_resuming_continues_to_the_same_losses(tmp_path, dataset):
    options = {
        "num_train_epochs": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "seed": 3,
        "dropout": 0.1,
    }
    whole = build_trainer(tmp_path / "whole", dataset, **options)
    whole.train()
    part = build_trainer(tmp_path / "part", dataset, callbacks=[StopAt(6)], **options)
    part.train()
    resumed = build_trainer(tmp_path / "part", dataset, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "part" / "checkpoint-6"))
    expected, seen = logged_losses(whole), logged_losses(resumed)
    assert len(expected) == 16
    assert seen == pytest.approx(expected, abs=1e-5)
    final = dict(whole.model.named_parameters())
    for name, parameter in resumed.model.named_parameters():
        assert torch.allclose(parameter, final[name], atol=1e-6), name
    moments = [trainer.optimizer.state_dict()["state"] for trainer in (whole, resumed)]
    for index, state in moments[0].items():
        assert torch.allclose(state["exp_avg"], moments[1][index]["exp_avg"], atol=1e-7)


def test_early_stopping_goes_on_counting_after_a_resume(tmp_path, dataset):
    """Two evaluations without a better CER before the kill, and one after it, are three; the patience is the new run's."""
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    options |= {"metric_for_best_model": "eval_cer", "load_best_model_at_end": True, "learning_rate": 0.0}
    options |= {name: recipe_defaults()[name] for name in ("restore_callback_states_from_checkpoint",)}
    options |= {"eval_dataset": dataset.select(range(2)), "save_total_limit": 9}
    part = build_trainer(tmp_path, dataset, callbacks=[EarlyStoppingCallback(3), StopAt(3)], **options)
    part.train()
    resumed = build_trainer(tmp_path, dataset, callbacks=[EarlyStoppingCallback(3)], **(options | {"max_steps": 9}))
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 4
    longer = build_trainer(tmp_path, dataset, callbacks=[EarlyStoppingCallback(5)], **(options | {"max_steps": 9}))
    longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert longer.state.global_step == 6


def test_resuming_from_the_last_step_trains_no_further_one(tmp_path, dataset):
    """A run killed after its last checkpoint, in the midst of an epoch: Trainer by itself would train a sixth step."""
    options = {"max_steps": 5, "save_strategy": "steps", "save_steps": 5, "learning_rate": 5e-3}
    whole = build_trainer(tmp_path, dataset, **options)
    whole.train()
    resumed = build_trainer(tmp_path, dataset, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert resumed.state.global_step == 5 and logged_losses(resumed) == logged_losses(whole)
    final = dict(whole.model.named_parameters())
    assert all(torch.equal(parameter, final[name]) for name, parameter in resumed.model.named_parameters())
    further = build_trainer(tmp_path, dataset, **options | {"max_steps": 6})
    further.train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert further.state.global_step == 6


def test_a_resume_that_restores_nothing_is_noticed(tmp_path, dataset):
    """Take the repair of the checkpoint rules away: Trainer itself only warns."""
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    build_trainer(tmp_path, dataset, **options).train()
    with shipped_rules(), pytest.raises(ValueError, match="did not reach the model"):
        build_trainer(tmp_path, dataset, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_the_best_checkpoint_by_cer_comes_back(tmp_path, dataset, monkeypatch):
    """The lowest CER wins, and its weights, not the last ones, are in the model afterwards."""
    from dsocr.training import trainer as trainer_module

    cers = iter([0.9, 0.2, 0.7, 0.5])
    read = trainer_module.evaluate_dataset

    def scripted(*args, **kwargs):
        from dataclasses import replace

        result = read(*args, **kwargs)
        return replace(result, metrics=replace(result.metrics, cer=next(cers)))

    monkeypatch.setattr(trainer_module, "evaluate_dataset", scripted)
    trainer = build_trainer(
        tmp_path,
        dataset,
        eval_dataset=dataset.select(range(4)),
        max_steps=4,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=1,
        load_best_model_at_end=True,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    saved = load_adapter(build_tiny_model("v1")[0], tmp_path / "checkpoint-2")
    kept = dict(saved.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert torch.equal(parameter, kept[name]), name


@pytest.mark.parametrize("quiet", [True, False])
def test_what_is_logged(tmp_path, dataset, caplog, quiet):
    trainer = build_trainer(
        tmp_path, dataset, max_steps=2, eval_dataset=dataset.select(range(2)), logging_steps=10, disable_tqdm=quiet
    )
    with caplog.at_level("INFO"):
        trainer.train()
    # The first steps one by one, whatever logging_steps is.
    for step in (1, 2):
        assert f"step {step}/2: loss " in caplog.text
    first = next(entry for entry in trainer.state.log_history if "loss" in entry)
    for key in ("samples_per_second", "image_tokens_per_second", "text_tokens_per_second", "peak_memory_gib"):
        assert first[key] > 0
    assert first["image_tokens_per_second"] > first["text_tokens_per_second"]
    metrics = trainer.evaluate()
    assert {"eval_cer", "eval_wer", "eval_exact", "eval_loss"} <= set(metrics)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_that_can_be_resumed(tmp_path, dataset, number):
    class PressCtrlC(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), number)

    # A shell gives its background jobs another handler than Python's own.
    previous = signal.getsignal(number)
    interrupt = InterruptCallback()
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 100}
    trainer = build_trainer(tmp_path, dataset, callbacks=[interrupt, PressCtrlC()], **options)
    trainer.train()
    assert interrupt.interrupted and trainer.state.global_step == 3
    assert (tmp_path / "checkpoint-3" / "trainer_state.json").is_file()
    assert signal.getsignal(number) is previous
    resumed = build_trainer(tmp_path, dataset, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 6


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path, dataset):
    trainer = build_trainer(tmp_path, dataset, max_steps=5)
    with torch.no_grad():
        next(p for n, p in trainer.model.named_parameters() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(TrainingDivergedError, match="Lower --learning_rate"):
        trainer.train()


@pytest.mark.slow
def test_workers_under_the_spawn_start_method(tmp_path, dataset):
    import torch.multiprocessing as multiprocessing

    losses = []
    for workers in (0, 2):
        multiprocessing.set_start_method("spawn", force=True)
        try:
            trainer = build_trainer(tmp_path, dataset, max_steps=2, dataloader_num_workers=workers)
            trainer.train()
        finally:
            multiprocessing.set_start_method(None, force=True)
        losses.append(logged_losses(trainer))
    assert losses[0] == losses[1]


def test_a_damaged_image_in_a_worker_keeps_its_name(tmp_path, dataset):
    from dsocr.data.image_files import UnreadableImageError

    trainer = build_trainer(tmp_path, dataset, max_steps=8, dataloader_num_workers=1)
    path = dataset[5]["image"]
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(UnreadableImageError, match="000005.png"):
        trainer.train()


def overfit(tmp_path, dataset, steps):
    trainer = build_trainer(
        tmp_path,
        dataset,
        lora=False,
        freeze=False,
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        adam_beta2=0.98,
        logging_steps=50,
    )
    trainer.train()
    return trainer


def check_overfitted(trainer, dataset):
    model, processor = trainer.model, trainer.processing_class
    read = evaluate_dataset(model, processor, dataset, ReadingOptions(max_new_tokens=64, progress=False))
    assert read.metrics.cer == 0, list(zip(read.references, read.predictions, strict=True))
    # The images make the answer: swapping two of them swaps the two outputs.
    images, texts = list(dataset["image"]), list(dataset["text"])
    images[1], images[2] = images[2], images[1]
    swapped = transcribe(model, processor, images, ReadingOptions(max_new_tokens=64, progress=False))
    assert swapped == [texts[0], texts[2], texts[1], *texts[3:]]
    shuffled = evaluate_dataset(
        model, processor, dataset, ReadingOptions(max_new_tokens=64, progress=False), shuffle_images=True
    )
    assert shuffled.metrics.cer > 0.5


@pytest.mark.slow
def test_eight_rendered_lines_are_learned_to_zero_errors(tmp_path, dataset):
    eight = dataset.select(range(8))
    assert len(set(eight["text"])) == 8
    trainer = overfit(tmp_path / "run", eight, steps=160)
    check_overfitted(trainer, eight)
    trainer.save_model(tmp_path / "run")
    again = load_model(str(tmp_path / "run"))
    assert all(torch.equal(p, q) for p, q in zip(again.parameters(), trainer.model.parameters(), strict=True))


@pytest.mark.slow
def test_eight_real_lines_are_learned_to_zero_errors(tmp_path, shared):
    from dsocr.data import load_ocr_dataset

    dataset = load_ocr_dataset(shared / "data" / "stanford1905", max_samples=8)
    check_overfitted(overfit(tmp_path, dataset, steps=260), dataset)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one_with_the_double_batch(tmp_path, dataset):
    """Two real processes through accelerate_configs/cpu_ddp.yaml; images of both kinds, with and without tiles."""
    import subprocess
    import sys

    from helpers.paths import REPOSITORY
    from PIL import Image

    for index, path in enumerate(dataset["image"]):
        if index % 4 == 0:
            Image.open(path).resize((40, 24)).save(path)
    script = str(REPOSITORY / "tests" / "helpers" / "ddp_script.py")
    one = tmp_path / "one.json"
    two = tmp_path / "two.json"
    data = str(tmp_path / "data")
    subprocess.run([sys.executable, script, data, str(one), "4"], check=True)
    config = str(REPOSITORY / "accelerate_configs" / "cpu_ddp.yaml")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "--main_process_port", "0"]
    subprocess.run([*launch, script, data, str(two), "2"], check=True)
    single, double = (json.loads(path.read_text(encoding="utf-8")) for path in (one, two))
    assert (single["processes"], double["processes"]) == (1, 2)
    assert double["losses"] == pytest.approx(single["losses"], abs=1e-5)
    assert double["cer"] == pytest.approx(single["cer"])


def test_bf16_weights_as_on_a_gpu(tmp_path, dataset):
    """The types that a GPU run has: base in bf16, adapter in fp32, autocast on."""
    model, processor = build_tiny_model("v1")
    trainer = build_trainer(
        tmp_path,
        dataset,
        model=(model.to(torch.bfloat16), processor),
        bf16=True,
        max_steps=3,
        learning_rate=5e-3,
        eval_dataset=dataset.select(range(3)),
    )
    assert trainer.data_collator.dtype == torch.bfloat16
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    trainer.preflight(strict=False)
    trainer.train()
    losses = logged_losses(trainer)
    assert losses[-1] < losses[0]
    assert trainer.evaluate()["eval_cer"] >= 0


def test_another_runs_checkpoint_is_refused(tmp_path, dataset):
    """Rows, adapter settings, image settings and base weights are compared before the first step."""
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    build_trainer(tmp_path / "run", dataset, **options).train()
    checkpoint = str(tmp_path / "run" / "checkpoint-2")
    build_trainer(tmp_path / "run", dataset, **options).check_resume(checkpoint)
    reordered = dataset.select(reversed(range(len(dataset))))
    with pytest.raises(ValueError, match="the training rows"):
        build_trainer(tmp_path / "run", reordered, **options).check_resume(checkpoint)
    with pytest.raises(ValueError, match="lora_dropout .was 0.0, --lora_dropout is now 0.1"):
        build_trainer(tmp_path / "run", dataset, dropout=0.1, **options).check_resume(checkpoint)
    other = build_trainer(tmp_path / "run", dataset, **options)
    with torch.no_grad():
        next(p for n, p in other.model.named_parameters() if n.endswith("language_model.norm.weight")).mul_(1.5)
    with pytest.raises(ValueError, match="weights of the base model"):
        other.check_resume(checkpoint)
    # A picture replaced under its name is another training row.
    Image.open(dataset["image"][0]).rotate(180).save(dataset["image"][0])
    with pytest.raises(ValueError, match="the training rows"):
        build_trainer(tmp_path / "run", dataset, **options).check_resume(checkpoint)
