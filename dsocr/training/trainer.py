"""TRL's SFTTrainer, extended by error rates from generation in every evaluation and by a strict resume."""

import logging
import math
from pathlib import Path

from datasets import Dataset
from peft import PeftModel
from torch.utils.data import Sampler
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from dsocr.common.errors import TrainingDivergedError
from dsocr.common.run_files import EVALUATION_EXAMPLES_NAME
from dsocr.data.fingerprints import fingerprint_dataset
from dsocr.models.adapters import AdapterIdentity, check_loaded_adapter, save_adapter_card, verify_saved_adapter
from dsocr.models.freezing import bare_model
from dsocr.reading.evaluation import EvaluatedSet, evaluate_dataset
from dsocr.reading.generation import ReadingOptions
from dsocr.report.pictures import draw_examples
from dsocr.samples.collator import OcrCollator
from dsocr.samples.lengths import add_lengths
from dsocr.samples.processor import OcrProcessor
from dsocr.samples.vision_cache.building import build_feature_cache
from dsocr.samples.vision_cache.cache import FeatureCache
from dsocr.samples.vision_cache.options import CacheOptions
from dsocr.samples.vision_cache.tower import extend_tower, find_tower, is_frozen
from dsocr.training.callbacks import (
    EpochCallback,
    FirstStepsCallback,
    LogLineCallback,
    OcrProgressCallback,
    TowerOffDeviceCallback,
)
from dsocr.training.compact_head import CompactHead, try_triton
from dsocr.training.preflight import PreflightReport, run_preflight
from dsocr.training.resuming import TRAINING_ROWS, check_same_run
from dsocr.training.sampling import LengthSampler
from dsocr.training.throughput import ThroughputMeter
from dsocr.training.trackers import log_picture


logger = logging.getLogger(__name__)

_BY_LENGTH = ("group_by_length", "batch_rebalance")


def _with_lengths(dataset: Dataset | None, processor: OcrProcessor, arguments: SFTConfig) -> Dataset | None:
    column = arguments.length_column_name
    return dataset if dataset is None or column in dataset.column_names else add_lengths(dataset, processor, column)


class OcrTrainer(SFTTrainer):
    """`SFTTrainer` for OCR. It adds the following; everything else is TRL's.

    - `evaluate` reads the held-out lines and adds `cer`, `wer` and `exact` to the metrics, so that
      `metric_for_best_model="eval_cer"`, early stopping and trackers see them.
    - Logs contain samples/s, image and text tokens/s and peak memory.
    - A loss that is not finite stops the run.
    - Batches of similar length (`train_sampling_strategy="group_by_length"`) work: lengths include image tokens.
    - Resuming from the checkpoint of the last step trains no further step.
    - Resuming checks that every adapter tensor arrived; saved adapters carry the identity of their base and training rows,
      and `check_resume` refuses another run's checkpoint.

    Args:
        reading: Options for reading in evaluation.
        identity: Written to `dsocr_adapter.json` beside every saved adapter.
        **kwargs: Arguments of `SFTTrainer`; `processing_class` must be an `OcrProcessor`.

    Raises (in training):
        TrainingDivergedError: for a loss that is not finite.
    """

    data_collator: OcrCollator

    def __init__(
        self, *, reading: ReadingOptions = ReadingOptions(), identity: AdapterIdentity | None = None, **kwargs
    ):
        if kwargs["args"].train_sampling_strategy in _BY_LENGTH:
            # Add lengths to the evaluation set too: Trainer groups it by length as well.
            for name in ("train_dataset", "eval_dataset"):
                kwargs[name] = _with_lengths(kwargs.get(name), kwargs["processing_class"], kwargs["args"])
        self._train_sampler: LengthSampler | None = None
        super().__init__(**kwargs)
        if getattr(self.model, "is_loaded_in_4bit", False):
            # Undo TRL's cast to bf16 of an adapter on a 4-bit base: bf16 would round small optimizer steps away.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        extend_tower(self.model)
        try_triton(self.args.device)
        self._head = CompactHead(bare_model(self.model))
        self._meter = ThroughputMeter(self.processing_class.image_token_id)
        self.reading = reading
        self.identity = identity
        self._training_rows = fingerprint_dataset(self.train_dataset)
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(EpochCallback(self.data_collator))
        self.add_callback(FirstStepsCallback())
        self.add_callback(LogLineCallback())
        if not self.args.disable_tqdm:
            self.add_callback(OcrProgressCallback())

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        """The sampler of the training rows; of like length by this project's own sampler."""
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        rows = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        self._train_sampler = LengthSampler(list(dataset[self.args.length_column_name]), rows, seed)
        return self._train_sampler

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler | None:
        """The sampler of the evaluated rows: the same on every process, like that of the training rows."""
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_eval_sampler(eval_dataset)
        rows = self.args.eval_batch_size * self.args.world_size
        return LengthSampler(list(eval_dataset[self.args.length_column_name]), rows, seed=0)

    def preflight(self, *, strict: bool = True) -> PreflightReport:
        """Check one batch of two lines end to end, and log the result; see `dsocr.training.preflight.run_preflight`.

        Raises:
            PreflightError: when a check fails.
        """
        if self.args.activation_checkpointing:
            # Do as `train` will: without checkpointing the check could run out of memory although training fits.
            self.model.activation_checkpointing_enable(self.args.activation_checkpointing_kwargs)
        rows = [self.train_dataset[index] for index in range(min(2, len(self.train_dataset)))]
        batch = self._prepare_inputs(self.data_collator(rows))
        self.model.train()

        def compute_loss(inputs):
            with self.compute_loss_context_manager():
                return self.compute_loss(self.model, inputs)

        try:
            texts = [row["text"] for row in rows]
            report = run_preflight(self.model, self.processing_class, batch, texts, compute_loss, strict=strict)
        finally:
            # Clear TRL's metrics: they must start with the first step.
            self._metrics["train"].clear()
            self._total_train_tokens = 0
        for line in report.describe():
            logger.info("preflight: %s", line)
        return report

    def cache_features(self, datasets: list[Dataset], options: CacheOptions) -> FeatureCache | None:
        """Compute the vision features of some datasets once; training and evaluation then use them.

        Args:
            datasets: Every dataset to be read more than once.
            options: Where to store features.

        Returns:
            The cache, for further evaluations; `None` without datasets, or, with a warning, without room.

        Raises:
            ValueError: when the tower is not frozen.
        """
        if not datasets:
            return None
        if not is_frozen(self.model):
            raise ValueError("the vision tower is trained: its features change with every step.")
        model = self.accelerator.unwrap_model(self.model)
        self.data_collator.features = build_feature_cache(
            model,
            self.processing_class,
            datasets,
            options,
            batch_size=self.args.per_device_eval_batch_size,
            context=self.compute_loss_context_manager,
            progress=not self.args.disable_tqdm,
        )
        # Don't move the tower if DDP needs all parameters on one device, or if packed weights must stay.
        on_gpu = self.args.device.type == "cuda"
        movable = on_gpu and self.accelerator.num_processes == 1 and not getattr(model, "is_loaded_in_4bit", False)
        trained_from_cache = options.train_again and not options.augment
        if self.data_collator.features is not None and trained_from_cache and movable:
            self.add_callback(TowerOffDeviceCallback(find_tower(model)))
        return self.data_collator.features

    def save_and_verify(self, output_dir: str | Path) -> None:
        """Save model and state, load the adapter back strictly, and compare every tensor.

        Raises:
            ValueError: when a reloaded tensor differs from the trained one.
        """
        self.save_model(output_dir)
        self.save_state()
        self.accelerator.wait_for_everyone()
        count = verify_saved_adapter(self.model, output_dir)
        logger.info("%d adapter tensors saved, loaded back and compared", count)

    def get_eval_dataloader(self, eval_dataset=None):
        # Trainer shares one collator between training and evaluation; swap in one without augmentation.
        training_collator = self.data_collator
        self.data_collator = training_collator.without_augmentation()
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # Label smoothing, a custom loss and returned outputs need the labels in their original positions.
        plain = return_outputs or self.label_smoother is not None or self.compute_loss_func is not None
        if not plain:
            inputs = self._head.compact(inputs)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def training_step(self, model, inputs, *args, **kwargs):
        self._meter.count_batch(inputs["input_ids"], inputs["attention_mask"])
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._meter.count_loss(loss)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            if not self._meter.is_finite or not math.isfinite(logs["loss"]):
                raise TrainingDivergedError(
                    f"the loss is {logs['loss']} at step {self.state.global_step}. Lower --learning_rate (now "
                    f"{self.args.learning_rate:g}), use --bf16 instead of --fp16 if the card has it, and look at the "
                    "lines around this step."
                )
            logs |= self._meter.measure(self.state.global_step, self.accelerator.num_processes)
            self._meter.restart(self.state.global_step)
        super().log(logs, start_time)

    def evaluation_loop(self, dataloader, description, *args, metric_key_prefix: str = "eval", **kwargs):
        output = super().evaluation_loop(dataloader, description, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        read = evaluate_dataset(
            self.accelerator.unwrap_model(self.model),
            self.processing_class,
            dataloader.dataset,
            self.reading,
            features=self.data_collator.features,
        )
        rates = {name: getattr(read.metrics, name) for name in ("cer", "wer", "exact", "looping")}
        output.metrics.update({f"{metric_key_prefix}_{name}": rate for name, rate in rates.items()})
        self._log_examples(dataloader.dataset, read)
        # Restart the meter: evaluation must not count against the throughput of the steps.
        self._meter.restart(self.state.global_step)
        return output

    def _log_examples(self, dataset: Dataset, read: EvaluatedSet) -> None:
        if not self.args.report_to or not self.state.is_world_process_zero:
            return
        path = Path(self.args.output_dir) / EVALUATION_EXAMPLES_NAME
        draw_examples(path, dataset["image"], {"read": read})
        log_picture(self.callback_handler.callbacks, path, self.state.global_step)

    def check_resume(self, checkpoint: str | Path) -> None:
        """Refuse to go on from another run's checkpoint; see `dsocr.training.resuming.check_same_run`.

        Call it as soon as the trainer is built: `train` restores the checkpoint only after features and first readings.

        Raises:
            ValueError: naming every difference.
        """
        check_same_run(checkpoint, self.model, self.identity, self._training_rows)

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if isinstance(self.model, PeftModel):
            check_loaded_adapter(self.model, Path(resume_from_checkpoint))

    def _run_epoch(self, *args, **kwargs):
        # Trainer asks only after a step whether it was the last one: resumed from the checkpoint of the last step, in the
        # midst of an epoch, it would train one step too many. This can go when Trainer asks before the step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        if self._train_sampler is not None:
            # accelerate tells the sampler its epoch, but not through the wrappers of a resume in the midst of an epoch.
            self._train_sampler.set_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _load_callback_state(self) -> None:
        """Restore what callbacks counted; the patience is the command line's, which Trainer would overwrite."""
        named = [
            callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        ]
        super()._load_callback_state()
        restored = [call for call in self.callback_handler.callbacks if isinstance(call, EarlyStoppingCallback)]
        for callback, patience in zip(restored, named, strict=True):
            callback.early_stopping_patience = patience

    def _load_best_model(self):
        super()._load_best_model()
        if isinstance(self.model, PeftModel) and self.state.best_model_checkpoint:
            check_loaded_adapter(self.model, Path(self.state.best_model_checkpoint))

    def _save(self, output_dir: str | None = None, state_dict=None):
        super()._save(output_dir, state_dict)
        # Trainer calls this in every process; let only the first one write.
        if self.args.should_save and isinstance(self.model, PeftModel):
            rows = {TRAINING_ROWS: self._training_rows}
            save_adapter_card(output_dir or self.args.output_dir, self.model, self.identity, **rows)
