"""Train the built-in tiny base model from random weights to read printed lines (Latin and Russian, 1-16 characters).

    python recipes/pretrain_tiny.py --output_dir outputs/tiny_base

A stopped run goes on with --resume. The result is a native checkpoint in bf16 with its figures in README.md.
"""

from transformers import HfArgumentParser

from dsocr.common.logs import setup_logging
from dsocr.common.machine import prepare_process
from dsocr.lab.tiny_training import PretrainArguments, pretrain
from dsocr.lab.tiny_training_report import write_released_model


def main(arguments: PretrainArguments):
    setup_logging(arguments.output_dir, is_main=True)
    model, processor, history = pretrain(arguments)
    write_released_model(arguments, model, processor, history)


if __name__ == "__main__":
    prepare_process()
    main(HfArgumentParser(PretrainArguments).parse_args_into_dataclasses()[0])
