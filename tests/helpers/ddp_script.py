"""Trains three steps and writes losses and CER; tests start it with one and with two processes."""

import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent.parent))

from dsocr.common.machine import prepare_process
from dsocr.data import load_ocr_dataset
from dsocr.models import verify_saved_adapter
from dsocr.samples.vision_cache.options import CacheOptions
from helpers.training import build_trainer, logged_losses


def main(data: str, output: str, batch_size: str, features: str | None = None) -> None:
    dataset = load_ocr_dataset(data, progress=False)
    trainer = build_trainer(
        Path(output).parent / "ddp",
        dataset,
        eval_dataset=dataset.select(range(5)),
        max_steps=3,
        per_device_train_batch_size=int(batch_size),
        learning_rate=5e-3,
    )
    if features is not None:
        assert trainer.cache_features([dataset], CacheOptions(features)) is not None
    trainer.train()
    cer = trainer.evaluate()["eval_cer"]
    folder = Path(output).with_suffix("")
    trainer.save_model(folder)
    trainer.accelerator.wait_for_everyone()
    verify_saved_adapter(trainer.model, folder)
    if trainer.is_world_process_zero():
        losses = logged_losses(trainer)
        content = {"losses": losses, "cer": cer, "processes": trainer.accelerator.num_processes}
        Path(output).write_text(json.dumps(content), encoding="utf-8")
    trainer.accelerator.end_training()


if __name__ == "__main__":
    prepare_process()
    main(*sys.argv[1:])
