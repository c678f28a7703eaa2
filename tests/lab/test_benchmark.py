"""The benchmark measures what it says, at tiny size."""

import json

import pytest
import torch
from helpers.recipes import load_recipe
from torch.utils.flop_counter import FlopCounterMode

from dsocr.lab.flops import count_step_flops, measure_matrix_rate
from dsocr.lab.levers import ALL, LEVERS, PLAIN
from dsocr.lab.random_models import build_random_model, random_batch
from dsocr.lab.shapes import benchmark_config, benchmark_geometry, image_with_tiles
from dsocr.lab.tables import build_section, update_readme, write_result
from dsocr.lab.training_speed import TrainingOptions, measure_training


CPU = torch.device("cpu")


def options(version, **changes):
    config = benchmark_config("tiny", version)
    geometry = benchmark_geometry("tiny", config, "gundam")
    given = {"answer_tokens": 12, "dtype": torch.float32, "levers": tuple(LEVERS), "repeats": 1}
    return TrainingOptions(config, geometry, image_with_tiles(geometry, 2), **{**given, **changes})


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_variant_trains_on_the_same_loss(version, checkpointing):
    rows = measure_training(options(version, checkpointing=checkpointing), CPU, matrix_rate=1e11, progress=False)
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


def test_packed_weights_too():
    packed = options("v1", load_in_4bit=True, checkpointing=True, levers=("features",))
    rows = measure_training(packed, CPU, matrix_rate=1e11, progress=False)
    assert rows["features"]["loss"] == pytest.approx(rows[PLAIN]["loss"], abs=1e-4)


def test_operations_are_those_that_torch_counts(version):
    """On eager code, whose products torch's own counter sees; routed experts see as many rows as they would."""
    given = options(version)
    # Before the model is built: SAM chooses the class of its attention then.
    given.config._attn_implementation = "eager"
    model = build_random_model(given.config, dtype=torch.float32)
    model.set_experts_implementation("eager")
    batch = random_batch(
        given.config,
        given.geometry,
        size=given.image_size,
        batch_size=1,
        answer_tokens=12,
        dtype=torch.float32,
        device=CPU,
    )
    names = ("pixel_values", "pixel_values_local", "num_local_patches", "patches_grid")
    images = {name: batch.pop(name) for name in names if name in batch}
    flops = count_step_flops(given.config, given.geometry, size=given.image_size, batch_size=1, answer_tokens=12)
    with torch.no_grad():
        with FlopCounterMode(display=False) as vision:
            features = model.model.get_image_features(**images, return_dict=True)
        with FlopCounterMode(display=False) as language:
            model.model.language_model(inputs_embeds=torch.randn(1, batch["input_ids"].shape[1], 64), use_cache=False)
    assert torch.cat(list(features.pooler_output)).shape[0] == given.geometry.count_tokens(*given.image_size)
    assert flops.vision == pytest.approx(vision.get_total_flops(), rel=0.02)
    # Backward costs as much again for products with frozen weights, twice as much for attention scores.
    text, length = given.config.get_text_config(), batch["input_ids"].shape[1]
    scores = text.num_hidden_layers * 4 * text.hidden_size * length**2
    assert (flops.language - scores) / 2 == pytest.approx(language.get_total_flops(), rel=0.02)


def test_the_matrix_rate_is_a_rate():
    small, large = (measure_matrix_rate(CPU, torch.float32, side=side, repeats=3) for side in (256, 512))
    assert 0.05 < small / large < 20


def test_mid_size_has_the_released_widths():
    for version in ("v1", "v2"):
        mid, full = (benchmark_config(size, version) for size in ("mid", "full"))
        assert mid.text_config.hidden_size == full.text_config.hidden_size == 1280
        assert mid.text_config.num_hidden_layers == 4 and full.text_config.num_hidden_layers == 12
        assert mid.text_config.mlp_layer_types == ["dense", "sparse", "sparse", "sparse"]
    with pytest.raises(ValueError, match="size='huge'"):
        benchmark_config("huge", "v1")
    with pytest.raises(ValueError, match="tiles=50"):
        image_with_tiles(benchmark_geometry("mid", benchmark_config("mid", "v1"), "gundam"), 50)


def test_the_recipe(tmp_path, capsys):
    recipe = load_recipe("benchmark")
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- speed table -->\nold\n<!-- end of speed table -->\nb\n")
    argv = ["--repeats", "1", "--answer_tokens", "20", "--new_tokens", "4", "--reading", "--loading"]
    argv += ["--output_dir", str(tmp_path), "--readme", str(readme)]
    recipe.main(recipe.build_parser().parse_args(argv))
    shown = capsys.readouterr().out
    (result,) = json.loads((tmp_path / "speed_cpu.json").read_text())
    assert set(result["training"]) == {PLAIN, *LEVERS, ALL}
    assert result["reading"]["features"] > 0 and result["loading"]["ratio"] > 0 and result["data"]["rest_ms"] >= 0
    for words in ("all together", "Reading by generation", "Loading:", "ms to decode"):
        assert words in shown
    text = readme.read_text()
    assert "old" not in text and text.startswith("a\n") and text.endswith("b\n") and "all together" in text


def test_a_result_takes_the_place_of_an_earlier_one_of_the_same_step(tmp_path):
    row = {"ratio": 1.0, "peak_bytes": 1, "mfu": 0.1, "loss": 2.0}
    row["seconds"] = {"vision": 1, "language_forward": 1, "backward": 1}
    step = {"version": "v1", "size": "tiny", "dtype": "float32", "image_mode": "base", "tiles": 0, "batch_size": 1}
    step |= {"answer_tokens": 1, "repeats": 1, "load_in_4bit": False, "checkpointing": False}
    first = {"hardware": "old machine", "step": step, "training": {PLAIN: row}}
    write_result(tmp_path, "cpu", first)
    write_result(tmp_path, "cpu", first | {"hardware": "new machine"})
    write_result(tmp_path, "cpu", first | {"step": step | {"batch_size": 2}, "hardware": "other step"})
    section = build_section(tmp_path)
    assert "old machine" not in section and "new machine" in section and "other step" in section
    (tmp_path / "bare.md").write_text("no marks")
    with pytest.raises(ValueError, match="speed table"):
        update_readme(tmp_path / "bare.md", tmp_path)


def test_growth(monkeypatch):
    from dsocr.lab import growth

    monkeypatch.setattr(growth, "SAMPLES", (70,))
    monkeypatch.setattr(growth, "BATCHES", (1, 2))
    monkeypatch.setattr(growth, "TILES", (0, 2))
    monkeypatch.setattr(growth, "ANSWERS", (10, 40))
    rows = growth.measure_growth(options("v1"), CPU, matrix_rate=1e11)
    assert [row["value"] for row in rows] == [1, 2, 0, 2, 10, 40, 70]
    assert all(row["samples_per_second"] > 0 and row["peak_bytes"] > 0 for row in rows)
    assert rows[1]["peak_bytes"] > rows[0]["peak_bytes"] and rows[5]["peak_bytes"] > rows[4]["peak_bytes"]
