"""Generation with and without ready vision features, interleaved: lines a second, and the share of vision."""

import statistics
import time

import torch
from transformers import GenerationConfig

from dsocr.lab.levers import TowerClock, synchronize
from dsocr.lab.random_models import build_random_model, random_batch
from dsocr.lab.training_speed import TrainingOptions
from dsocr.models import freeze_vision
from dsocr.models.sam_attention import split_global_attention
from dsocr.samples.vision_cache.tower import accept_features


def measure_reading(options: TrainingOptions, device: torch.device, *, new_tokens: int) -> dict[str, float]:
    """Read one batch with pixels and with features, in turn.

    Args:
        options: Model, images and batch; its levers are not looked at.
        device: Where.
        new_tokens: Tokens that every line generates; random weights never end by themselves.

    Returns:
        `plain` and `features` in lines/s, their `ratio` (median over the rounds), `vision_share` (0..1, measured), and
        `bound`, the ratio if vision cost nothing.
    """
    model = build_random_model(options.config, dtype=options.dtype, device=device).eval()
    freeze_vision(model)
    split_global_attention(model)
    accept_features(model)
    batch = random_batch(
        options.config,
        options.geometry,
        size=options.image_size,
        batch_size=options.batch_size,
        answer_tokens=1,
        dtype=options.dtype,
        device=device,
    )
    del batch["labels"]
    for name in ("input_ids", "attention_mask"):
        batch[name] = batch[name][:, :-1]
    names = [name for name in ("pixel_values", "pixel_values_local") if name in batch]
    seconds: dict[str, list[float]] = {"plain": [], "features": [], "vision": []}
    tower = model.model.vision_tower

    def read(kind: str, inputs: dict) -> None:
        synchronize(device)
        clock.seconds, start = 0.0, time.perf_counter()
        model.generate(**inputs, generation_config=generation)
        synchronize(device)
        seconds[kind].append(time.perf_counter() - start)
        if kind == "plain":
            seconds["vision"].append(clock.seconds)

    text = options.config.get_text_config()
    generation = GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=text.eos_token_id,
    )
    with torch.inference_mode():
        ready = {name: tower(batch[name]).last_hidden_state for name in names}
        clock = TowerClock(model, device)
        for _ in range(options.repeats + 1):
            read("plain", batch)
            read("features", {**batch, **ready})
    plain, features, vision = (seconds[kind][1:] for kind in ("plain", "features", "vision"))
    share = statistics.median(v / p for v, p in zip(vision, plain, strict=True))
    return {
        "plain": options.batch_size / statistics.median(plain),
        "features": options.batch_size / statistics.median(features),
        "ratio": statistics.median(p / f for p, f in zip(plain, features, strict=True)),
        "vision_share": share,
        "bound": 1 / (1 - share),
        "new_tokens": new_tokens,
    }
