"""What the README says to type works."""

import json
import re
import shlex

import pytest
from conftest import REPOSITORY

from dsocr.arguments import parse_arguments


README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("command", commands())
def test_every_command_names_files_and_flags_that_exist(command):
    for part in command.split("&&"):
        words = shlex.split(part)
        for word in words:
            if word.endswith((".py", ".yaml", ".txt")):
                assert (REPOSITORY / word).is_file(), word
        for recipe in ("sft_lora", "qlora"):
            if f"recipes/{recipe}.py" in words:
                parse_arguments(words[words.index(f"recipes/{recipe}.py") + 1 :], qlora=recipe == "qlora")


def test_ci_finds_exactly_one_test_command_and_one_main_job():
    for mark in ("tests", "main job"):
        assert len(re.findall(rf"^<!-- {mark} -->\n```bash\n[^\n]+\n```$", README, re.M)) == 1, mark
    assert "pytest" in re.search(r"<!-- tests -->\n```bash\n(.+)\n", README)[1]
    assert "README.md" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def test_every_flag_of_the_table_exists():
    table = README.split("| flag | what it does |")[1].split("\n\n")[0]
    flags = re.findall(r"`(--\w+)", table)
    assert len(flags) >= 9
    from dsocr.arguments import build_parser

    known = {option for action in build_parser()._actions for option in action.option_strings}
    assert set(flags) <= known


def test_the_memory_table_is_what_was_measured():
    from dsocr.memory_table import build_table

    assert build_table(REPOSITORY / "docs") in README


def test_the_metadata_example_is_json_with_the_three_columns():
    example = re.search(r"```json\n(.*?)\n```", README)[1]
    assert set(json.loads(example)) == {"image", "text", "page"}


def test_python_names_of_the_readme_exist():
    import dsocr

    for name in re.findall(r"dsocr\.(\w+)\(", README.split("```python")[1]):
        assert hasattr(dsocr, name), name
    for name in dsocr.__all__:
        getattr(dsocr, name)


def test_every_accelerate_config_says_when_to_use_it():
    for path in sorted((REPOSITORY / "accelerate_configs").glob("*.yaml")):
        assert path.read_text(encoding="utf-8").startswith("# "), path.name
        assert path.name in README
    assert "NCCL" in (REPOSITORY / "accelerate_configs" / "multi_gpu.yaml").read_text(encoding="utf-8")


def test_nothing_of_this_machine_is_named():
    """No path of a machine and no package index in what is shipped; no torchvision, no remote code."""
    import subprocess

    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    names = [
        name for name in listed.stdout.splitlines() if name.endswith((".py", ".md", ".yaml", ".cfg", ".txt", ".toml"))
    ]
    if not names:
        pytest.skip("not a git checkout")
    for name in names:
        text = (REPOSITORY / name).read_text(encoding="utf-8-sig")
        assert not re.search(r"--(extra-)?index-url|/work/|/root/", text) or name == "tests/test_readme.py", name
        if name.startswith(("dsocr/", "recipes/")):
            assert "import torchvision" not in text and "trust_remote_code=True" not in text, name
