"""Fine-tune DeepSeek-OCR (v1, v2) or Unlimited-OCR with LoRA on transcribed lines or pages.

The built-in demonstration, on a GPU or a CPU:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/sft_lora.py

The real thing, with `my_lines/metadata.jsonl` holding lines such as {"image": "images/1.png", "text": "Dear sir"}:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/sft_lora.py \\
        --model_name_or_path deepseek-ai/DeepSeek-OCR --dataset_name my_lines/ --output_dir outputs/my_adapter

or with a file of flags: --config recipes/configs/v1_lora.yaml. A stopped run goes on with --resume_from_checkpoint.
--plan says how much memory a run would need, without loading anything. recipes/qlora.py is this recipe on a 4-bit base.
"""

import sys
from pathlib import Path

from transformers import EarlyStoppingCallback
from trl import get_peft_config

from dsocr.arguments import parse_arguments, with_demo_config
from dsocr.collator import OcrCollator
from dsocr.data import BadSamples, load_training_sets
from dsocr.demo import prepare_demo
from dsocr.doctor import examine_quickly
from dsocr.environment import describe_machine, prepare_process, warn_about_unused_gpu
from dsocr.evaluation import evaluate_dataset, evaluate_sets
from dsocr.failures import INTERRUPTED, explained
from dsocr.features.building import CacheOptions
from dsocr.memory.plan_report import check_gpu, plan_run
from dsocr.memory.settings import MemorySettings
from dsocr.models import freeze_vision, load_model, prepare_adapter, verify_saved_adapter
from dsocr.processor import OcrProcessor
from dsocr.report import write_run_report
from dsocr.run_log import Stages, setup_logging
from dsocr.run_options import (
    cache_options,
    caching_choice,
    data_options,
    image_options,
    loading_options,
    memory_settings,
    reading_options,
)
from dsocr.training.caching import choose_cached
from dsocr.training.callbacks import InterruptCallback
from dsocr.training.checkpoints import resolve_resume
from dsocr.training.full_precision import evaluate_on_full_precision
from dsocr.training.run_results import Readings, draw_train_sample, write_data_summary, write_run
from dsocr.training.trainer import OcrTrainer
from dsocr.wrapper import find_guard, make_peft_safe


DEMO_CONFIG = Path(__file__).parent / "configs" / "demo.yaml"


def main(script_args, training_args, model_args):
    output_dir = Path(training_args.output_dir)
    is_main = training_args.process_index == 0
    logger = setup_logging(output_dir, is_main=is_main)
    stage = Stages(logger, 9 if model_args.load_in_4bit else 8)
    machine = describe_machine()
    logger.info("%s", ", ".join(f"{name} {value}" for name, value in machine.items()))
    warn_about_unused_gpu()
    resume = resolve_resume(training_args.resume_from_checkpoint, output_dir)
    name, revision, source = model_args.model_name_or_path, model_args.model_revision, script_args.dataset_name
    is_builtin = name is None
    if name is None or source is None:
        with training_args.main_process_first(desc="writing the demonstration"):
            name, source, extra = prepare_demo(output_dir, name, source)
            script_args.extra_eval_datasets += extra

    ################
    # Model
    ################
    with stage(f"base model {name}"):
        processor = OcrProcessor.from_pretrained(name, revision=revision, **image_options(script_args))
        needed = MemorySettings(**memory_settings(script_args, training_args, model_args))
        if not training_args.use_cpu:
            check_gpu(name, needed, revision=revision, image_mode=script_args.image_mode)
        loading = loading_options(script_args, training_args, model_args)
        model = load_model(name, revision=revision, **loading)
        make_peft_safe(model)
        freeze_vision(model)
        revision = getattr(model.config, "_commit_hash", None) or revision

    ################
    # Data
    ################
    max_length = training_args.max_length or model.config.get_text_config().max_position_embeddings
    bad_samples = BadSamples(script_args.on_bad_sample)
    with stage(f"data {source}"):
        options = data_options(script_args, training_args) | {"max_length": max_length}
        sets = load_training_sets(source, processor, bad_samples, **options)
        if is_main:
            bad_samples.write(output_dir / "skipped_samples.json")
            write_data_summary(output_dir, sets, processor, bad_samples.counts)
        for finding in examine_quickly(sets, processor, script_args.max_new_tokens):
            logger.warning("data: %s: %s", finding.message, finding.advice)

    ################
    # Training
    ################
    identity = {"base_model_name_or_path": name, "revision": revision} | processor.to_dict()
    interrupt = InterruptCallback()
    callbacks = [interrupt]
    if script_args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(script_args.early_stopping_patience))
    with stage("LoRA"):
        peft_config = get_peft_config(model_args)
        if peft_config is not None:
            peft_config.revision = revision
            prepare_adapter(model, peft_config)
        trainer = OcrTrainer(
            model=model,
            args=training_args,
            data_collator=OcrCollator(
                processor, model.dtype, max_length, augment=script_args.augment, seed=training_args.seed
            ),
            train_dataset=sets.train,
            eval_dataset=sets.held_out,
            processing_class=processor,
            peft_config=peft_config,
            callbacks=callbacks,
            max_new_tokens=script_args.max_new_tokens,
            adapter_card=identity,
        )
        if peft_config is not None and is_main:
            trainer.model.print_trainable_parameters()
    with stage("preflight"):
        for line in trainer.preflight(strict=not is_builtin).lines():
            logger.info("preflight: %s", line)
    reading = reading_options(script_args, training_args)
    cached_reading = reading
    with stage("vision features"):
        cached = choose_cached(sets, trainer.model, **caching_choice(script_args, training_args, len(sets.train)))
        if cached:
            options = CacheOptions(**cache_options(script_args, training_args))
            cached_reading = reading | {"features": trainer.cache_features(cached, options, sets.train in cached)}
    with stage("CER before training"):
        before = evaluate_sets(trainer.model, processor, sets.evaluated, without_adapter=True, **cached_reading)
    with stage("training"):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if interrupt.interrupted:
        if is_main:
            write_run_report(output_dir)
        logger.warning("stopped; the same command with --resume_from_checkpoint goes on from the saved step")
        sys.exit(INTERRUPTED)

    ################
    # Save and evaluation
    ################
    with stage("saving, and CER after training"):
        trainer.save_model(output_dir)
        trainer.save_state()
        trainer.accelerator.wait_for_everyone()
        count = verify_saved_adapter(trainer.model, output_dir)
        logger.info("%d adapter tensors saved, loaded back and compared", count)
        after = evaluate_sets(trainer.model, processor, sets.evaluated, **cached_reading)
        shuffled = evaluate_dataset(trainer.model, processor, sets.held_out, shuffle_images=True, **cached_reading)
        train_sample = evaluate_dataset(trainer.model, processor, draw_train_sample(sets), **cached_reading)
    transferred = None
    if model_args.load_in_4bit:
        with stage("CER of the adapter on the full-precision base"):
            transferred = evaluate_on_full_precision(
                name, output_dir, processor, sets.held_out, revision=revision, dtype=model_args.dtype, **reading
            )
    if is_main:
        run = {"command": sys.argv, "machine": machine, "skipped": bad_samples.counts, **find_guard(model).counts()}
        readings = Readings(before, after, shuffled, train_sample, transferred)
        print(write_run(output_dir, sets, readings, **identity, **run), flush=True)
    trainer.end()


def run(argv, *, qlora=False):
    prepare_process()
    arguments = parse_arguments(with_demo_config(argv, DEMO_CONFIG, qlora=qlora), qlora=qlora)
    script_args, _, model_args = arguments
    place = {"revision": model_args.model_revision, "image_mode": script_args.image_mode}

    def plan():
        return plan_run(model_args.model_name_or_path, MemorySettings(**memory_settings(*arguments)), **place)

    with explained(memory_advice=lambda: "\n".join(plan().lines())):
        if script_args.plan:
            setup_logging(None, is_main=True)
            print(plan().to_json() if script_args.json else "\n".join(plan().lines()))
        else:
            main(*arguments)


if __name__ == "__main__":
    run(sys.argv[1:])
