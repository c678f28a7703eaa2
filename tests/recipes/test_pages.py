"""What the pages say to type works."""

import json
import re
import shlex
import subprocess
from dataclasses import fields

import pytest
from helpers.paths import REPOSITORY
from helpers.recipes import load_recipe
from PIL import Image
from trl import ScriptArguments

import dsocr
from dsocr.cli.parser import parse_recipe
from dsocr.cli.reading import EvaluateArguments, TranscribeArguments
from dsocr.cli.tools import (
    CheckArguments,
    MergeArguments,
    PrepareArguments,
    ReportArguments,
    SyntheticArguments,
    VerifyArguments,
)
from dsocr.cli.training import OcrScriptArguments, build_parser, parse_arguments
from dsocr.lab.arguments import BenchmarkArguments, GpuCheckArguments, MemoryArguments
from dsocr.models.loading import TINY_BASE


KINDS = {
    "benchmark": BenchmarkArguments,
    "check_data": CheckArguments,
    "evaluate": EvaluateArguments,
    "gpu_check": GpuCheckArguments,
    "make_synthetic": SyntheticArguments,
    "measure_memory": MemoryArguments,
    "merge": MergeArguments,
    "prepare_data": PrepareArguments,
    "report": ReportArguments,
    "transcribe": TranscribeArguments,
    "verify_checkpoint": VerifyArguments,
}
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def commands() -> list[tuple[str, str]]:
    """Every command line of every page, with the page's name."""
    found = []
    for page in PAGES:
        blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
        lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]
        found += [(page.name, line.strip()) for line in lines]
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_every_command_names_files_and_flags_that_exist(page, command):
    for part in command.split("&&"):
        words = shlex.split(part)
        for word in words:
            if word.endswith((".py", ".yaml", ".txt")):
                assert (REPOSITORY / word).is_file(), word
        for script in (word for word in words if word.startswith("recipes/") and word.endswith(".py")):
            name, rest = script.removeprefix("recipes/").removesuffix(".py"), words[words.index(script) + 1 :]
            if name in ("sft_lora", "qlora"):
                parse_arguments(rest, qlora=name == "qlora")
            else:
                parse_recipe(KINDS[name], rest, None)


def test_ci_finds_exactly_one_test_command_and_one_main_job():
    for mark in ("tests", "main job"):
        assert len(re.findall(rf"^<!-- {mark} -->\n```bash\n[^\n]+\n```$", README, re.M)) == 1, mark
    assert "pytest" in re.search(r"<!-- tests -->\n```bash\n(.+)\n", README)[1]
    assert "README.md" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


def test_the_readme_fits_on_a_screen():
    assert len(README.splitlines()) <= 150


def test_every_link_between_pages_leads_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_flags_of_the_training_page_are_all_there_are():
    table = (REPOSITORY / "docs" / "training.md").read_text(encoding="utf-8").split("| flag | what it does |")[1]
    shown = set(re.findall(r"--(\w+)", table.split("\n\n")[0]))
    known = {action.dest for action in build_parser()._actions}
    ours = {field.name for field in fields(OcrScriptArguments)} - {field.name for field in fields(ScriptArguments)}
    assert shown <= known and ours <= shown


def test_the_metadata_example_is_json_with_the_three_columns():
    example = re.search(r"```json\n(.*?)\n```", README)[1]
    assert set(json.loads(example)) == {"image", "text", "page"}


def test_python_names_of_the_readme_exist():
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
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    names = [
        name for name in listed.stdout.splitlines() if name.endswith((".py", ".md", ".yaml", ".cfg", ".txt", ".toml"))
    ]
    if not names:
        pytest.skip("not a git checkout")
    for name in names:
        text = (REPOSITORY / name).read_text(encoding="utf-8-sig")
        assert (
            not re.search(r"--(extra-)?index-url (?!ADDRESS|АДРЕС)|/work/|/root/", text)
            or name == "tests/recipes/test_pages.py"
        ), name
        if name.startswith(("dsocr/", "recipes/")):
            assert "import torchvision" not in text and "trust_remote_code=True" not in text, name


def notebook_commands() -> list[list[str]]:
    text = (REPOSITORY / "docs" / "notebook.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    return [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]


@pytest.mark.slow
def test_the_notebook_page_works_from_photographs_to_a_merged_model(tmp_path, monkeypatch, lines):
    """Every command of docs/notebook.md, in its order, with the tiny model and made-up pages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(REPOSITORY / "recipes"))
    corners = [(10, 10 + 60 * row) for row in range(4)]
    for folder, first in (("photos", 0), ("test_photos", 12)):
        (tmp_path / folder).mkdir()
        for number in range(3 if folder == "photos" else 1):
            page = Image.new("RGB", (400, 260), "white")
            for line, corner in zip(lines[first + 4 * number :], corners, strict=False):
                page.paste(line.image, corner)
            page.save(tmp_path / folder / f"{number}.jpg")
    # rapidocr, which finds the lines, is an optional extra.
    boxes = [(left, top, left + 200, top + 40) for left, top in corners]
    quick = ["--max_steps", "1", "--max_new_tokens", "8", "--disable_tqdm", "true", "--validation_fraction", "0.3"]
    quick += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    done = []
    for command in notebook_commands():
        script = next(word for word in command if word.startswith("recipes/") and word.endswith(".py"))
        name = script.removeprefix("recipes/").removesuffix(".py")
        words = [
            word.replace("deepseek-ai/DeepSeek-OCR", str(TINY_BASE)) for word in command[command.index(script) + 1 :]
        ]
        recipe = load_recipe(name)
        if name == "transcribe":
            monkeypatch.setattr(recipe, "load_detector", lambda: lambda image: boxes)
            assert recipe.main(parse_recipe(TranscribeArguments, [*words, "--max_new_tokens", "8"], None)) == 0
            for table in tmp_path.glob("*/review.csv"):
                # A person corrects it.
                rows = table.read_text(encoding="utf-8").splitlines()
                table.write_text(
                    "\n".join([rows[0], *(re.sub(r"png,[^,]*,", "png,word,", r) for r in rows[1:])]) + "\n"
                )
        elif name == "evaluate":
            recipe.main(parse_recipe(EvaluateArguments, [*words, "--max_new_tokens", "8"], None))
        elif name == "sft_lora":
            monkeypatch.setattr("sys.argv", ["sft_lora.py"])
            if "--plan" not in words:
                # Named, a model must know print and handwriting alike; the built-in one may not know this hand.
                position = words.index("--model_name_or_path")
                del words[position : position + 2]
            recipe.run([*words, *([] if "--plan" in words else quick)])
        else:
            recipe.main(parse_recipe(KINDS[name], words, None))
        done.append(name)
    assert done == ["transcribe"] * 2 + ["sft_lora"] * 2 + ["evaluate", "transcribe", "sft_lora", "report", "merge"]
    for path in (
        "outputs/notebook/report.html",
        "outputs/notebook_test/report.html",
        "transcribed/0.jpg.xml",
        "again/review.csv",
        "outputs/comparison/comparison.html",
        "outputs/notebook_merged/model.safetensors",
    ):
        assert (tmp_path / path).is_file(), path
