"""QLoRA: fine-tune on a base model with 4-bit linear layers and routed experts, for cards with little memory.

The built-in demonstration, on a GPU or a CPU:

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/qlora.py

A real run: first print the memory plan (nothing is loaded), then train:

    python recipes/qlora.py --model_name_or_path deepseek-ai/DeepSeek-OCR --image_mode base --plan
    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/qlora.py \\
        --model_name_or_path deepseek-ai/DeepSeek-OCR --image_mode base --dataset_name my_lines/

The recipe is recipes/sft_lora.py with the same flags and other defaults (dsocr.cli.training.qlora_defaults): NF4 with
double quantisation, one line per step, activation checkpointing, a paged 8-bit optimizer on a GPU. --quantize_vision
packs the vision side too; --lora_target_parameters mlp.experts.gate_up_proj mlp.experts.down_proj --lora_dropout 0
trains LoRA on the 4-bit experts. recipes/configs/qlora_*.yaml fit small cards.
"""

import sys

import sft_lora


def run(argv):
    sft_lora.run(argv, qlora=True, description=__doc__)


if __name__ == "__main__":
    run(sys.argv[1:])
