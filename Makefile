# What people who change the code type; see CONTRIBUTING.md.
.PHONY: test test-all lint demo

test:
	pytest

test-all:
	pytest -m "slow or not slow"

lint:
	ruff format --check .
	ruff check .
	mypy

demo:
	accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/sft_lora.py
