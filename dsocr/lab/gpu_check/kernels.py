"""The kernels that a step depends on: which one is taken, how fast it is, and whether it agrees with plain code."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE, _ChunkedLogProbFunction, _use_triton

from dsocr.lab.gpu_check.setup import CheckSetup, Figures, NotOnThisDevice, Probe, measure_peak_bytes
from dsocr.lab.levers import levers_on
from dsocr.lab.profiling import count_calls, observe_experts, random_routing, routed_experts
from dsocr.lab.random_models import StepOptions, image_with_tiles, random_batch
from dsocr.lab.training_step import timestamp
from dsocr.models import freeze_vision
from dsocr.models.frozen_experts import run_frozen_experts
from dsocr.models.quantized_experts import BLOCK_SIZE


# Rows of a small training batch: eight lines of a view, or their answers.
_ROWS = {"tiny": 128, "full": 3600}
_ANSWERS = {"tiny": 32, "full": 1600}
_ATTENTION = ("aten::_scaled_dot_product", "aten::_cudnn_attention", "aten::_fused_sdp")


def _milliseconds(setup: CheckSetup, run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(setup.repeats):
        start = timestamp(setup.place)
        run()
        seconds.append(timestamp(setup.place) - start)
    return 1000 * statistics.median(seconds)


def _difference(one: torch.Tensor, two: torch.Tensor) -> float:
    """Norm of the difference, relative to the second tensor's."""
    return float((one.float() - two.float()).norm() / two.float().norm())


def _compare_experts(setup: CheckSetup, model: PreTrainedModel) -> Figures:
    experts, text = routed_experts(model), model.config.get_text_config()
    rows, dtype = _ROWS[setup.size], model.dtype
    hidden, chosen, weights = random_routing(experts, rows, text.num_experts_per_tok, dtype, setup.place)
    # Random weights of width 0.02 would make numbers that vanish in 16 bit.
    hidden = 10 * hidden
    found: dict[str, tuple] = {}
    for name in ("grouped_mm", "eager", "frozen"):
        if name != "frozen":
            model.set_experts_implementation(name)
        # By name, so that this project's products run on cards with a grouped kernel too.
        run = partial(run_frozen_experts, experts) if name == "frozen" else experts
        inputs = hidden.clone().requires_grad_()

        def step(inputs: torch.Tensor = inputs, run: Callable = run) -> torch.Tensor:
            inputs.grad = None
            output = run(inputs, chosen, weights)
            output.sum().backward()
            return output.detach()

        found[name] = (step(), inputs.grad, _milliseconds(setup, step))
    model.set_experts_implementation("grouped_mm")
    grouped, loop, frozen = found["grouped_mm"], found["eager"], found["frozen"]
    return {
        "rows": rows,
        "grouped_mm_ms": grouped[2],
        "loop_ms": loop[2],
        "frozen_ms": frozen[2],
        "output_difference": _difference(grouped[0], loop[0]),
        "gradient_difference": _difference(grouped[1], loop[1]),
        "frozen_output_difference": _difference(frozen[0], grouped[0]),
        "frozen_gradient_difference": _difference(frozen[1], grouped[1]),
    }


def _compare_head(setup: CheckSetup, model: PreTrainedModel, triton: bool) -> Figures:
    if _use_triton(setup.place) is not triton:
        raise NotOnThisDevice("TRL computes it in torch here" if triton else "TRL computes it with Triton here")
    text, rows = model.config.get_text_config(), _ANSWERS[setup.size]
    weight = model.get_output_embeddings().weight.detach()
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, text.hidden_size, generator=generator).to(setup.place, model.dtype)
    labels = torch.randint(text.vocab_size, (rows,), generator=generator).to(setup.place)

    def fused(inputs: torch.Tensor) -> torch.Tensor:
        fields = ("log_probs", "entropy", "is_top1")
        chunk = _CHUNKED_LOGPROB_CHUNK_SIZE
        return -_ChunkedLogProbFunction.apply(inputs, weight, None, labels, 1.0, chunk, None, 1.0, fields)[0].mean()

    def plain(inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(nn.functional.linear(inputs, weight).float(), labels)

    found = {}
    for name, loss_of in (("fused", fused), ("plain", plain)):
        inputs = hidden.clone().requires_grad_()

        def step(inputs: torch.Tensor = inputs, loss_of: Callable = loss_of) -> torch.Tensor:
            inputs.grad = None
            loss = loss_of(inputs)
            loss.backward()
            return loss.detach()

        loss, peak = measure_peak_bytes(setup.place, step)
        found[name] = (float(loss), inputs.grad, peak, _milliseconds(setup, step))
    fused_found, plain_found = found["fused"], found["plain"]
    return {
        "answers": rows,
        "loss_difference": fused_found[0] - plain_found[0],
        "gradient_difference": _difference(fused_found[1], plain_found[1]),
        "fused_ms": fused_found[3],
        "plain_ms": plain_found[3],
        "fused_peak_bytes": fused_found[2],
        "plain_peak_bytes": plain_found[2],
    }


def _observe_attention(setup: CheckSetup, model: PreTrainedModel, padded: bool) -> Figures:
    geometry = setup.processor("base").geometry
    options = StepOptions(geometry, image_with_tiles(geometry, 0), answer_tokens=16, dtype=model.dtype)
    batch = random_batch(model.config, options, setup.place)
    if padded:
        batch["attention_mask"][0, -4:] = 0
    with torch.no_grad(), torch.autocast(setup.device, model.dtype, enabled=setup.on_gpu):
        tower = count_calls(lambda: model.model.vision_tower(batch["pixel_values"]), setup.place)
        whole = count_calls(lambda: model(**batch), setup.place)
    figures = {}
    for part, calls in (("tower", tower), ("language", {name: whole[name] - tower.get(name, 0) for name in whole})):
        chosen = {name: count for name, count in calls.items() if name.startswith(_ATTENTION) and count}
        shown = [
            f"{name.removeprefix('aten::_').removeprefix('scaled_dot_product_')} {n}" for name, n in chosen.items()
        ]
        figures[part] = ", ".join(shown) or "none"
    return figures


def _compare_sam(setup: CheckSetup, model: PreTrainedModel) -> Figures:
    side = setup.processor("base").geometry.base_size
    generator = torch.Generator().manual_seed(0)
    pixels = (torch.rand(1, 3, side, side, generator=generator) * 2 - 1).to(setup.place, model.dtype)
    found = {}
    for name, levers in (("whole", ()), ("pieces", ("split_attention",))):
        with levers_on(model, ("no_grad", *levers)), torch.no_grad():
            run = partial(model.model.vision_tower, pixels)
            seen, peak = measure_peak_bytes(setup.place, run)
            found[name] = (seen.last_hidden_state, peak, _milliseconds(setup, run))
    whole, pieces = found["whole"], found["pieces"]
    return {
        "largest_difference": float((whole[0] - pieces[0]).abs().max()),
        "whole_ms": whole[2],
        "pieces_ms": pieces[2],
        "whole_peak_bytes": whole[1],
        "pieces_peak_bytes": pieces[1],
    }


def _compare_codes(setup: CheckSetup, model: PreTrainedModel) -> Figures:
    if not setup.on_gpu:
        raise NotOnThisDevice("4-bit codes of CPU and GPU are compared on a GPU")
    import bitsandbytes.functional as bnb

    weight = routed_experts(model).gate_up_proj[0].detach().contiguous()
    found = [
        bnb.quantize_4bit(weight.to(place), blocksize=BLOCK_SIZE, quant_type="nf4") for place in ("cpu", setup.place)
    ]
    (on_cpu, cpu_state), (on_gpu, gpu_state) = found
    codes = on_cpu.flatten() != on_gpu.cpu().flatten()
    return {
        "differing_bytes": int(codes.sum()),
        "bytes": codes.numel(),
        "scale_difference": float((cpu_state.absmax - gpu_state.absmax.cpu()).abs().max()),
    }


def kernel_probes(setup: CheckSetup) -> Iterator[Probe]:
    """Experts, vocabulary head, attention, SAM and 4-bit codes, on a model of the released widths."""
    model = setup.model(setup.part_size)
    model.requires_grad_(False)
    freeze_vision(model)
    yield "way of the experts", lambda: {"path": observe_experts(model).describe()}
    yield "experts, grouped_mm against the loop", partial(_compare_experts, setup, model)
    yield "TRL's head with Triton", partial(_compare_head, setup, model, True)
    yield "TRL's head in torch", partial(_compare_head, setup, model, False)
    yield "attention, without padding", partial(_observe_attention, setup, model, False)
    yield "attention, with padding", partial(_observe_attention, setup, model, True)
    yield "SAM's bias in pieces", partial(_compare_sam, setup, model)
    yield "4-bit codes, CPU and GPU", partial(_compare_codes, setup, model)
