"""Running recipes from tests."""

import importlib.util
import subprocess
import sys

from helpers.paths import REPOSITORY


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
    """The module of a recipe."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start_recipe(name, *argv, **options):
    """Run a recipe as a person does, in a process of its own; returns the ended process."""
    command = [sys.executable, str(REPOSITORY / "recipes" / f"{name}.py"), *map(str, argv)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, **options)
