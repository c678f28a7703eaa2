"""Running recipes from tests."""

import importlib.util

from conftest import REPOSITORY


FEW_STEPS = [
    "--max_steps",
    "4",
    "--eval_strategy",
    "steps",
    "--eval_steps",
    "2",
    "--save_strategy",
    "steps",
    "--save_steps",
    "2",
    "--max_new_tokens",
    "8",
    "--disable_tqdm",
    "true",
    "--use_cpu",
    "true",
    "--bf16",
    "false",
]


def load_recipe(name):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
