"""The same number types in training and in reading."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from dsocr.lab.tiny import build_tiny_model
from dsocr.models import load_model
from dsocr.models.loading import TINY_BASE
from dsocr.models.precision import keep_routers_in_fp32, training_precision


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_router_chooses_the_same_experts_with_autocast_and_without(version):
    model, _ = build_tiny_model(version)
    (router,) = (module for name, module in model.named_modules() if name.endswith("layers.1.mlp.gate"))
    rows = torch.randn(1, 4096, router.hidden_dim)
    torch.nn.init.normal_(router.weight, std=0.1)

    def scores(autocast):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            return router(rows)

    expected = scores(False)[0]
    assert not torch.equal(scores(True)[0].float(), expected), "autocast changes a native router"
    assert keep_routers_in_fp32(model) == keep_routers_in_fp32(model) > 0
    for autocast in (False, True):
        logits, weights, indices = scores(autocast)
        assert torch.equal(logits, expected) and weights.dtype == torch.float32
        assert torch.equal(indices, scores(False)[2])


def test_every_loaded_model_has_such_routers():
    routers = [module for name, module in load_model(str(TINY_BASE)).named_modules() if name.endswith("mlp.gate")]
    assert routers and all(hasattr(router.forward, "func") for router in routers)


def test_reading_on_a_gpu_runs_in_trainings_context():
    def on(device, dtype):
        weight = SimpleNamespace(device=torch.device(device), dtype=dtype)
        return training_precision(SimpleNamespace(get_input_embeddings=lambda: SimpleNamespace(weight=weight)))

    for dtype in (torch.bfloat16, torch.float16):
        context = on("cuda", dtype)
        assert isinstance(context, torch.autocast) and context.fast_dtype == dtype
    assert not isinstance(on("cuda", torch.float32), torch.autocast)
    assert not isinstance(on("cpu", torch.bfloat16), torch.autocast)
