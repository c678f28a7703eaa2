"""The training of the built-in base learns, and goes on where it stopped."""

import pytest
import torch


def test_pretraining_learns_and_resumes(tmp_path, monkeypatch):
    from dsocr.lab import tiny_training as pretraining

    monkeypatch.setattr(pretraining, "SEGMENT", 10)

    def pretrain(folder, **options):
        arguments = pretraining.PretrainArguments(
            output_dir=str(tmp_path / folder),
            max_steps=20,
            eval_steps=10,
            eval_lines=4,
            warmup_steps=2,
            per_device_train_batch_size=4,
            width=64,
            layers=2,
            max_length=3,
            **options,
        )
        return pretraining.pretrain(arguments)

    model, _, history = pretrain("whole")
    assert history[1]["language_loss"] < history[0]["language_loss"]
    assert history[1]["auxiliary_loss"] < history[0]["auxiliary_loss"]

    evaluate, calls = pretraining.evaluate_lines, []

    def stop_at_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(pretraining, "evaluate_lines", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        pretrain("part")
    resumed, _, history = pretrain("part", resume=True)
    assert [entry["step"] for entry in history] == [10, 20]
    expected = dict(model.named_parameters())
    for name, parameter in resumed.named_parameters():
        assert torch.allclose(parameter, expected[name], atol=1e-6), name
