"""The command line."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.paths import REPOSITORY

from dsocr.cli.options import cache_options, data_options, memory_settings, reading_options
from dsocr.cli.training import parse_arguments
from dsocr.lab.tiny import build_tiny_model
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.samples.vision_cache.options import CacheOptions


CONFIGS = sorted((REPOSITORY / "recipes" / "configs").glob("*.yaml"))


def test_defaults_are_right_for_ocr_and_need_no_gpu():
    script, training, model = parse_arguments([])[:3]
    assert model.use_peft and model.lora_r == 16 and model.lora_task_type == "CAUSAL_LM"
    assert model.lora_target_modules == LANGUAGE_MODEL_TARGETS
    assert training.max_length is None and training.remove_unused_columns is False
    assert training.learning_rate == 2e-4 and training.lr_scheduler_type == "cosine"
    assert training.metric_for_best_model == "eval_cer" and training.greater_is_better is False
    assert training.eval_strategy == training.save_strategy == "epoch"
    assert training.use_cpu is not torch.cuda.is_available()
    if not torch.cuda.is_available():
        assert not training.bf16 and model.dtype == "float32"
    assert (script.image_mode, script.on_bad_sample) == (None, "raise")
    args = parse_arguments([])
    assert data_options(args).test_split == "test" and reading_options(args).batch_size == 8


def test_the_regular_expression_hits_the_language_model_alone(version):
    model, _ = build_tiny_model(version)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    hit = [name for name in linear if re.fullmatch(LANGUAGE_MODEL_TARGETS, name)]
    expected = [name for name in linear if "language_model.layers" in name]
    assert hit == expected and len(hit) == 3 * 4 + 3 * 3


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--resume_from_checkpoint"], "true"),
        (["--resume_from_checkpoint", "--seed", "1"], "true"),
        (["--resume_from_checkpoint", "a/b"], "a/b"),
        ([], None),
    ],
)
def test_resuming_needs_no_word(argv, expected):
    assert parse_arguments(argv).training.resume_from_checkpoint == expected


@pytest.mark.parametrize(("argv", "expected"), [([], None), (["--plan"], "text"), (["--plan", "json"], "json")])
def test_a_plan_is_text_or_json(argv, expected):
    assert parse_arguments(argv).script.plan == expected


@pytest.mark.parametrize("words", [["q_proj,v_proj"], ["q_proj,", "v_proj"], ["q_proj", ",v_proj"]])
def test_a_comma_list_of_modules_is_refused_with_the_right_spelling(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--lora_target_modules", *words])
    assert stop.value.code == 2
    assert "--lora_target_modules q_proj v_proj" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["q_proj", "v_proj"], [r".*layers\.\d{1,3}\.self_attn\.q_proj"], ["all-linear"]])
def test_lists_and_regular_expressions_pass(words):
    parse_arguments(["--lora_target_modules", *words])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1.0e-4", "unknown key 'learning_rat'"),
        ("learning_rate: [1, 2]", "learning_rate takes a single value"),
        ("learning_rate: fast", "learning_rate: 'fast' is of the wrong type"),
        ("extra_eval_datasets: a=b", "extra_eval_datasets takes a list"),
        ("- a", "expected `key: value` lines"),
        ("learning_rate: {a: 1}", "learning_rate takes a single value"),
        ("learning_rate: 0.1\nlearning_rate: 0.2", "'learning_rate' is given twice"),
        ("num_train_epochs: 010", "010 is an octal number"),
        ("fold: no", "fold: YAML takes this word for False; put it in quotes"),
        ("\tseed: 1", "not YAML"),
        ("seed: [1", "not YAML"),
        ("seed: 1\n---\nseed: 2", "not YAML"),
        ("seed: -1", "--seed -1: must be from 0 to 4294967295"),
    ],
)
def test_mistakes_in_a_config_file_are_named(tmp_path, capsys, content, message):
    path = tmp_path / "c.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SystemExit):
        parse_arguments(["--config", str(path)])
    assert message in capsys.readouterr().err


def test_a_missing_config_file_is_named(capsys):
    for argv in (["--config", "gone.yaml"], ["--config=gone.yaml"], ["--config"]):
        with pytest.raises(SystemExit):
            parse_arguments(argv)
    assert "gone.yaml: there is no such file" in capsys.readouterr().err


def test_the_command_line_overrides_the_config_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("learning_rate: 1e-3\nseed: 7\n", encoding="utf-8")
    _, training, _ = parse_arguments([f"--config={path}", "--seed", "9"])[:3]
    assert (training.learning_rate, training.seed) == (1e-3, 9)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_parses_and_changes_only_what_differs(path):
    qlora = path.name.startswith("qlora")
    parse_arguments(
        ["--config", str(path), *(["--bf16", "false"] if not torch.cuda.is_available() else [])], qlora=qlora
    )
    text = path.read_text(encoding="utf-8")
    header = text.split("\n\n")[0] if "\n\n" in text else text
    for word in ("# Hardware:", "# Command:"):
        assert word in header, f"{path.name}: the header lacks {word}"
    defaults = parse_arguments([], qlora=qlora)
    content = yaml.safe_load(text)
    for key, value in content.items():
        for arguments in defaults:
            if hasattr(arguments, key):
                assert getattr(arguments, key) != value, f"{path.name}: {key} only repeats the default"


def test_the_demonstration_is_used_when_nothing_is_named(tmp_path):
    demo = REPOSITORY / "recipes" / "configs" / "demo.yaml"
    other = tmp_path / "c.yaml"
    other.write_text("seed: 3\n", encoding="utf-8")

    def folder(*argv, qlora=False):
        return parse_arguments(argv, qlora=qlora, demo_config=demo).training.output_dir

    assert folder() == folder("--seed", "1") == "outputs/demo"
    assert parse_arguments(["--lora_r", "4"], demo_config=demo).model.lora_r == 4
    assert folder(qlora=True) == "outputs/demo_qlora"
    assert folder("--output_dir", "x", qlora=True) == "x"
    for argv in (["--dataset_name", "x"], ["--model_name_or_path=x"], ["--config", str(other)]):
        assert folder(*argv) == "outputs/sft_lora"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--dataset_streaming"], "--dataset_streaming is not supported"),
        (["--load_in_8bit"], "--load_in_8bit is not supported.*routed experts.*Use --load_in_4bit"),
        (["--quantize_vision"], "--quantize_vision needs --load_in_4bit"),
        (
            ["--augment", "--dataloader_persistent_workers", "--dataloader_num_workers", "1"],
            "--augment needs --dataloader_persistent_workers false",
        ),
        (["--load_in_4bit", "--use_peft", "false"], "--load_in_4bit needs --use_peft"),
        (["--lora_target_parameters", "mlp.experts.down_proj"], "needs --lora_dropout 0 .now 0.05"),
        (["--lora_target_modules", "*bad["], "not a regular expression"),
        (["--output_dir="], "--output_dir is empty"),
        (["--learning_rate", "nan"], "--learning_rate nan: must be at least 0"),
        (["--per_device_train_batch_size", "0"], "must be at least 1"),
        (["--max_new_tokens", "0"], "must be at least 1"),
        (["--lora_r", "0"], "must be at least 1"),
        (["--lora_dropout", "1"], "must be from 0.0 to 0.99"),
        (["--dataloader_num_workers", "-1"], "must be from 0 to 1024"),
        (["--fold", "2"], "write 2/5 for the second of five"),
        (["--fold", "6/5"], "--fold 6/5: of 5 folds, take one from 1/5 to 5/5"),
        (["--fold", "1/1"], "--fold 1/1"),
        (["--extra_eval_datasets", "print=a/", "nonsense"], "--extra_eval_datasets nonsense: write NAME=PATH"),
        (["--overwrite_output_dir", "--resume_from_checkpoint"], "give one of them"),
    ],
)
def test_flags_that_would_be_ignored_or_fail_later_are_refused(argv, words, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(argv)
    assert re.search(words, capsys.readouterr().err)


def test_qlora_changes_defaults_and_nothing_else():
    _script, training, model = parse_arguments([], qlora=True)[:3]
    assert (model.load_in_4bit, model.use_bnb_nested_quant, model.bnb_4bit_quant_type) == (True, True, "nf4")
    assert (training.activation_checkpointing, training.per_device_train_batch_size) == (True, 1)
    assert parse_arguments([])[2].load_in_4bit is False
    on_a_card = parse_arguments(["--plan"], qlora=True)
    settings = memory_settings(on_a_card)
    assert (settings.optim, settings.dtype) == ("paged_adamw_8bit", torch.bfloat16)
    assert settings.target_modules == LANGUAGE_MODEL_TARGETS


def test_help_shows_this_projects_flags(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sft_lora.py"])
    with pytest.raises(SystemExit) as stop:
        parse_arguments(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag in ("--image_mode", "--on_bad_sample", "--lora_r", "--resume_from_checkpoint", "--max_eval_samples"):
        assert flag in shown


def test_what_is_cached_and_where(tmp_path):
    def parsed(*more):
        argv = [
            "--output_dir",
            str(tmp_path),
            "--use_cpu",
            "true",
            "--bf16",
            "false",
            "--per_device_train_batch_size",
            "2",
        ]
        return parse_arguments([*argv, "--gradient_accumulation_steps", "2", *more])

    assert cache_options(parsed(), 100) == CacheOptions("auto", tmp_path / "vision_features")
    assert not cache_options(parsed("--num_train_epochs", "1"), 100).train_again
    # 20 steps of 2 x 2 samples see 80.
    assert cache_options(parsed("--max_steps", "20"), 79).train_again
    assert not cache_options(parsed("--max_steps", "20"), 80).train_again
    assert cache_options(parsed("--vision_cache", "off"), 100).place == "off"
    assert cache_options(parsed("--vision_cache", "kept"), 100).folder == Path("kept")
    # Each worker would need a copy of what is in memory.
    assert not cache_options(parsed("--dataloader_num_workers", "2"), 100).in_memory


def test_the_plan_counts_auto_as_the_released_checkpoints_dtype():
    assert memory_settings(parse_arguments(["--plan", "--dtype", "auto"])).dtype == torch.bfloat16
    assert memory_settings(parse_arguments(["--plan", "--dtype", "float16"])).dtype == torch.float16


def test_whether_the_cpu_was_asked_for(tmp_path):
    config = tmp_path / "cpu.yaml"
    config.write_text("use_cpu: true\n")
    assert not parse_arguments(["--dataset_name", "x"]).cpu_is_named
    for argv in (["--use_cpu"], ["--use_cpu=true"], ["--config", str(config)]):
        assert parse_arguments(argv).cpu_is_named
