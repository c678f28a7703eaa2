"""Fine-tune DeepSeek-OCR (v1, v2) or Unlimited-OCR with LoRA on transcribed lines or pages.

The built-in demonstration, on a GPU or a CPU:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/sft_lora.py

A real run, with lines such as {"image": "images/1.png", "text": "Dear sir"} in `my_lines/metadata.jsonl`:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/sft_lora.py \\
        --model_name_or_path deepseek-ai/DeepSeek-OCR --dataset_name my_lines/ --output_dir outputs/my_adapter

or with a file of flags: --config recipes/configs/lora_16gb.yaml. --resume_from_checkpoint continues a stopped run. --plan
prints how much memory a run needs, without loading anything. recipes/qlora.py is this recipe on a 4-bit base.
"""

import sys
from pathlib import Path

from dsocr.cli.demo import name_model_and_data
from dsocr.cli.options import plan_arguments, reading_options
from dsocr.cli.stages import (
    build_trainer,
    cache_features,
    check_card,
    describe_run,
    identify,
    load_base,
    load_data,
    load_processor,
    start_run,
)
from dsocr.cli.training import ParsedArguments, parse_arguments
from dsocr.common.errors import explained
from dsocr.common.folder_lock import hold_folder
from dsocr.common.logs import setup_logging
from dsocr.common.machine import prepare_process
from dsocr.reading.evaluation import evaluate_dataset, evaluate_sets
from dsocr.report.results import Readings, write_run
from dsocr.training.after_4bit import evaluate_on_full_precision
from dsocr.training.callbacks import InterruptCallback, end_if_interrupted
from dsocr.training.checkpoints import resolve_resume


DEMO_CONFIG = Path(__file__).parent / "configs" / "demo.yaml"


def main(args: ParsedArguments) -> None:
    output_dir = args.training.output_dir
    stage = start_run(output_dir, is_main=args.is_main)
    resume = resolve_resume(args.training.resume_from_checkpoint, output_dir, replace=args.is_fresh)
    name, source = name_model_and_data(args)

    ################
    # Model
    ################
    with stage(f"base model {name}"):
        processor = load_processor(args, name)
        check_card(args, name)
        model = load_base(args, name)
        identity = identify(args, name, model, processor)

    ################
    # Data
    ################
    with stage(f"data {source}"):
        sets, skipped = load_data(args, source, processor, model)

    ################
    # Training
    ################
    with stage("LoRA"):
        interrupt = InterruptCallback()
        trainer = build_trainer(args, model, processor, sets, identity, callbacks=[interrupt], resume=resume)
    with stage("preflight"):
        # The built-in model may meet unfamiliar writing, so a first loss above chance is no error for it.
        trainer.preflight(strict=args.model.model_name_or_path is not None)
    with stage("vision features"):
        features = cache_features(args, trainer, sets)
    with stage("CER before training"):
        model, reading = trainer.model, reading_options(args)
        before = evaluate_sets(model, processor, sets.evaluated, reading, features=features, without_adapter=True)
    with stage("training"):
        trainer.train(resume_from_checkpoint=resume)
    end_if_interrupted(interrupt, output_dir, is_main=args.is_main)

    ################
    # Evaluation
    ################
    with stage("saving, and CER after training"):
        trainer.save_and_verify(output_dir)
        after = evaluate_sets(model, processor, sets.evaluated, reading, features=features)
        shuffled = evaluate_dataset(model, processor, sets.held_out, reading, features=features, shuffle_images=True)
        train_sample = evaluate_dataset(model, processor, sets.train_sample, reading, features=features)
    transferred = None
    if args.model.load_in_4bit:
        with stage("CER of the adapter on the full-precision base"):
            transferred = evaluate_on_full_precision(
                name, output_dir, processor, sets.held_out, reading, revision=identity.revision, dtype=args.model.dtype
            )

    ################
    # Save
    ################
    if args.is_main:
        readings = Readings(before, after, shuffled, train_sample, transferred)
        print(write_run(output_dir, sets, readings, **identity.to_dict(), **describe_run(model, skipped)), flush=True)
    trainer.end()


def run(argv, *, qlora=False, description=__doc__):
    prepare_process()
    args = parse_arguments(argv, qlora=qlora, demo_config=DEMO_CONFIG, description=description)
    with explained(memory_advice=lambda: plan_arguments(args).render("text")):
        if args.script.plan:
            setup_logging(None, is_main=True)
            print(plan_arguments(args).render(args.script.plan))
        else:
            with hold_folder(args.training.output_dir, is_main=args.is_main):
                main(args)


if __name__ == "__main__":
    run(sys.argv[1:])
