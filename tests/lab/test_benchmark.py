"""The benchmark measures what it says, at tiny size."""

import json

import pytest
import torch
from helpers.recipes import load_recipe
from torch.utils.flop_counter import FlopCounterMode

from dsocr.cli.parser import parse_recipe
from dsocr.lab import expert_speed, flops, parts, training_speed
from dsocr.lab.arguments import BenchmarkArguments
from dsocr.lab.levers import ALL, LEVERS, PLAIN
from dsocr.lab.packing import quantize_model
from dsocr.lab.random_models import (
    StepOptions,
    build_random_model,
    image_with_tiles,
    random_batch,
    sized_config,
    sized_processor,
)
from dsocr.lab.training_speed import measure_growth, measure_training
from dsocr.lab.training_step import TrainingStep


CPU = torch.device("cpu")


def options(version, **changes):
    geometry = sized_processor("tiny", version, "gundam").geometry
    given = {"answer_tokens": 12, "dtype": torch.float32}
    return StepOptions(geometry, image_with_tiles(geometry, 2), **{**given, **changes})


def tiny_model(version):
    return build_random_model(sized_config("tiny", version), torch.float32, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_path_trains_on_the_same_loss(version, checkpointing):
    step = TrainingStep(tiny_model(version), options(version, checkpointing=checkpointing))
    rows = measure_training(step, repeats=1, matrix_rate=1e11)
    assert list(rows) == [PLAIN, *LEVERS, ALL]
    losses = [row["loss"] for row in rows.values()]
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-5)
    for row in rows.values():
        parts = sum(row["seconds"][part] for part in ("vision", "language_forward", "backward", "optimizer"))
        assert parts == pytest.approx(row["seconds"]["step"], rel=1e-6)
    # The tower is run by all that do not keep its features, and its work is counted only there.
    assert rows[ALL]["model_flops"] < rows[PLAIN]["model_flops"]
    assert rows["features"]["seconds"]["vision"] < 0.2 * rows[PLAIN]["seconds"]["vision"]
    assert rows["compact_head"]["peak_bytes"] < rows[PLAIN]["peak_bytes"]


def test_packed_weights_train_on_the_same_loss_too():
    step = TrainingStep(quantize_model(tiny_model("v1")), options("v1", checkpointing=True))
    assert step.run(("features",))["loss"] == pytest.approx(step.run(())["loss"], abs=1e-4)


def test_operations_are_those_that_torch_counts(version):
    """On eager code, whose products torch's own counter sees; routed experts see as many rows as they would."""
    given, config = options(version, batch_size=1), sized_config("tiny", version)
    # Before the model is built: SAM chooses the class of its attention then.
    config._attn_implementation = "eager"
    model = build_random_model(config, torch.float32, CPU)
    model.set_experts_implementation("eager")
    batch = random_batch(config, given, CPU)
    names = ("pixel_values", "pixel_values_local", "num_local_patches", "patches_grid")
    images = {name: batch.pop(name) for name in names if name in batch}
    counted = flops.count_step_flops(config, given)
    with torch.no_grad():
        with FlopCounterMode(display=False) as vision:
            features = model.model.get_image_features(**images, return_dict=True)
        with FlopCounterMode(display=False) as language:
            model.model.language_model(inputs_embeds=torch.randn(1, batch["input_ids"].shape[1], 64), use_cache=False)
    assert torch.cat(list(features.pooler_output)).shape[0] == given.geometry.count_tokens(*given.image_size)
    assert counted.vision == pytest.approx(vision.get_total_flops(), rel=0.02)
    # Backward costs as much again for products with frozen weights, twice as much for attention scores.
    text, length = config.get_text_config(), batch["input_ids"].shape[1]
    scores = text.num_hidden_layers * 4 * text.hidden_size * length**2
    assert (counted.language - scores) / 2 == pytest.approx(language.get_total_flops(), rel=0.02)


def test_the_matrix_rate_is_a_rate(monkeypatch):
    rates = []
    for side in (256, 512):
        monkeypatch.setitem(flops.MATRIX_SIDES, "cpu", side)
        rates.append(flops.measure_matrix_rate(CPU, torch.float32))
    assert 0.05 < rates[0] / rates[1] < 20


def test_mid_size_has_the_released_widths(version):
    mid, full = (sized_config(size, version) for size in ("mid", "full"))
    assert mid.text_config.hidden_size == full.text_config.hidden_size == 1280
    assert mid.text_config.num_hidden_layers == 4 and full.text_config.num_hidden_layers == 12
    assert mid.text_config.mlp_layer_types == ["dense", "sparse", "sparse", "sparse"]


def test_a_size_or_a_number_of_tiles_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="size='huge'"):
        sized_config("huge", "v1")
    with pytest.raises(ValueError, match="tiles=50"):
        image_with_tiles(sized_processor("mid", "v1", "gundam").geometry, 50)


@pytest.mark.slow
def test_growth(monkeypatch, version):
    monkeypatch.setattr(training_speed, "GROWN_SAMPLES", (70,))
    monkeypatch.setattr(training_speed, "GROWN_BATCHES", (1, 2))
    monkeypatch.setattr(training_speed, "GROWN_TILES", (0, 2, 50))
    monkeypatch.setattr(training_speed, "GROWN_ANSWERS", (10, 40))
    given = options(version)
    step = TrainingStep(tiny_model(version), given)
    rows = measure_growth(step, given.geometry)
    assert [row["value"] for row in rows] == [1, 2, 0, 2, 10, 40, 70]
    assert all(row["samples_per_second"] > 0 and row["peak_bytes"] > 0 for row in rows)
    assert rows[1]["peak_bytes"] > rows[0]["peak_bytes"] and rows[5]["peak_bytes"] > rows[4]["peak_bytes"]
    assert step.options == given


def run(*argv):
    load_recipe("benchmark").main(parse_recipe(BenchmarkArguments, list(map(str, argv)), None))


@pytest.mark.slow
def test_the_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parts, "NEW_TOKENS", 4)
    monkeypatch.setattr(training_speed, "ANSWER_TOKENS", 20)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "speed.md").write_text("a\n<!-- speed table -->\nold\n<!-- end of speed table -->\nb\n")
    run(
        "--repeats",
        1,
        "--parts",
        "training",
        "reading",
        "loading",
        "cutting",
        "--output_dir",
        tmp_path / "out",
        "--docs",
        docs,
    )
    shown = capsys.readouterr().out
    (result,) = json.loads((docs / f"speed_{'gpu' if torch.cuda.is_available() else 'cpu'}.json").read_text())
    assert set(result["training"]) == {PLAIN, *LEVERS, ALL}
    assert result["reading"]["features"] > 0 and result["loading"]["ratio"] > 0 and result["data"]["rest_ms"] >= 0
    assert all(line["ratio"] > 0 for line in result["cutting"].values())
    text = (docs / "speed.md").read_text()
    for words in ("all together", "Reading by generation", "Loading:", "ms to decode", "a grey line"):
        assert words in shown and words in text
    assert "old" not in text and text.startswith("a\n") and text.endswith("b\n")


def test_the_recipe_measures_one_part_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "NEW_TOKENS", 4)
    run("--repeats", 1, "--parts", "reading", "--output_dir", tmp_path)
    (path,) = tmp_path.glob("speed_*.json")
    (result,) = json.loads(path.read_text())
    assert set(result) == {"hardware", "machine", "step", "reading"}


def test_a_folder_without_the_page_is_refused_before_the_measuring(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"speed\.md does not exist; --docs"):
        run("--output_dir", tmp_path / "out", "--docs", tmp_path)
    assert not list(tmp_path.glob("speed*"))


@pytest.mark.slow
def test_every_path_of_the_experts_is_timed(monkeypatch):
    monkeypatch.setattr(expert_speed, "EXPERT_ROWS", (8,))
    monkeypatch.setattr(expert_speed, "EXPERT_TYPES", ("bfloat16",))
    (column,) = expert_speed.measure_experts(1).values()
    assert column[expert_speed.REFERENCE]["ratio"] == 1 and expert_speed.HERE in column
    assert len(column) == 6 and all(path["seconds"] > 0 for path in column.values())
