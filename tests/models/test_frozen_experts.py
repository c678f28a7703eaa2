"""Frozen experts by products of single experts: equal to transformers' way, one read per layer, no gradient for weights."""

import copy
import logging
from collections import Counter
from contextlib import contextmanager

import pytest
import torch
from helpers.models import load_tiny_base
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations import moe

from dsocr.lab.profiling import observe_experts, routed_experts
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import frozen_experts, quantized_experts
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.models.frozen_experts import has_grouped_kernel, run_frozen_experts, use_frozen_experts
from dsocr.models.quantized_experts import WEIGHTS, Experts4bit


N_EXPERTS, TOP_K, N_TOKENS = 8, 2, 37
# Operators that read numbers back on a GPU. transformers' fallback reads by `tolist`, which `watched` counts.
READING = ("_grouped_mm", "_local_scalar_dense", "nonzero", "_unique2", "unique_consecutive")
HALF = torch.bfloat16


class Watch(TorchDispatchMode):
    """Counts operators and waits for the device, and keeps the sorted shapes of what operators compute."""

    def __init__(self):
        super().__init__()
        self.calls, self.shapes = Counter(), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.calls[func.overloadpacket.__name__] += 1
        results = result if isinstance(result, tuple) else [result]
        # Views below autograd have no base; only these operators make results of their own.
        if func.overloadpacket.__name__ not in ("transpose", "t", "select", "detach", "alias"):
            self.shapes += [tuple(sorted(tensor.shape)) for tensor in results if torch.is_tensor(tensor)]
        return result

    @property
    def reads(self):
        return self.calls["tolist"] + sum(self.calls[name] for name in READING)


@pytest.fixture
def watched(monkeypatch):
    """Run a function under a `Watch`. `tolist` of a CPU tensor calls no operator, so the method itself is counted."""

    @contextmanager
    def watch():
        with Watch() as seen, monkeypatch.context() as patch:
            for name in ("tolist", "cpu", "numpy"):
                plain = getattr(torch.Tensor, name)

                def counted(tensor, *args, plain=plain, **kwargs):
                    seen.calls["tolist"] += 1
                    return plain(tensor, *args, **kwargs)

                patch.setattr(torch.Tensor, name, counted)
            yield seen

    return watch


def build_experts(version, dtype, hidden=64, intermediate=48):
    plain = routed_experts(build_tiny_model(version)[0])
    config = copy.deepcopy(plain.config)
    config.num_experts, config.hidden_size, config.moe_intermediate_size = N_EXPERTS, hidden, intermediate
    experts = type(plain)(config).to(dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in experts.parameters():
        parameter.normal_(std=0.05, generator=generator)
    return experts


def route(kind):
    generator = torch.Generator().manual_seed(1)
    if kind == "all rows to one expert":
        return torch.full((N_TOKENS, TOP_K), 2)
    index = torch.rand(N_TOKENS, N_EXPERTS if kind == "every expert" else 3, generator=generator).topk(TOP_K).indices
    if kind == "an expert with one row":
        index[5, 0] = N_EXPERTS - 1
    return index


@pytest.fixture
def one_thread():
    """Several threads split a product of float32 by its memory's alignment, and its last bits differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compute(run, experts, index, autocast=False):
    """Output, gradient of the rows and gradient of the routing weights, with the same random numbers every time."""
    generator = torch.Generator().manual_seed(2)
    dtype = torch.float32 if autocast else getattr(experts, "compute_dtype", experts.down_proj.dtype)
    hidden = torch.randn(N_TOKENS, experts.hidden_dim, generator=generator).to(dtype).requires_grad_()
    weights = torch.rand(N_TOKENS, TOP_K, generator=generator).to(dtype).requires_grad_()
    with torch.autocast("cpu", HALF, enabled=autocast):
        output = run(experts, hidden, index, weights)
    output.backward(torch.randn(output.shape, generator=generator).to(dtype))
    return output.detach(), hidden.grad, weights.grad


def by_transformers(experts, *args):
    return type(experts).forward(experts, *args)


def by_fallback(experts, *args):
    """What transformers does on cards before compute capability 8.0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moe, "_can_use_grouped_mm", lambda *args: False)
        return by_transformers(experts, *args)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "kind", ["every expert", "most experts without rows", "an expert with one row", "all rows to one expert"]
)
def test_outputs_and_gradients_equal_transformers_bit_for_bit(one_thread, version, dtype, autocast, kind):
    experts, index = build_experts(version, dtype), route(kind)
    here = compute(run_frozen_experts, experts, index, autocast)
    for other in (by_transformers, by_fallback):
        assert all(map(torch.equal, here, compute(other, experts, index, autocast))), other.__name__


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_experts_of_the_released_width_equal_transformers_bit_for_bit(one_thread, dtype):
    experts, index = build_experts("v1", dtype, hidden=1280, intermediate=896), route("an expert with one row")
    assert all(map(torch.equal, compute(run_frozen_experts, experts, index), compute(by_transformers, experts, index)))


def test_a_layer_is_read_once_and_its_weights_get_no_gradient(watched):
    experts, index = build_experts("v1", torch.float32), route("an expert with one row")
    n_hit, shapes = len(index.unique()), {tuple(sorted(weight.shape)) for weight in experts.parameters()}
    with watched() as here:
        compute(run_frozen_experts, experts, index)
    assert here.reads == 1
    # Two products forward and two for the rows' gradient.
    assert here.calls["mm"] == 4 * n_hit
    assert not shapes & set(here.shapes)
    with watched() as grouped:
        compute(by_transformers, experts, index)
    assert grouped.reads == 4, "transformers reads less often now"
    with watched() as fallback:
        compute(by_fallback, experts, index)
    # The fallback's own products run below its operators, where a dispatch mode does not see them.
    assert fallback.reads == 4 and shapes <= set(fallback.shapes), "transformers leaves the weights' gradients out now"


def test_neither_rows_nor_weights_are_kept_for_the_backward_pass():
    experts, kept = build_experts("v1", torch.float32), []

    def keep(tensor):
        kept.append((tuple(tensor.shape), tensor.untyped_storage().data_ptr()))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute(run_frozen_experts, experts, route("every expert"))
    assert kept
    assert not {weight.untyped_storage().data_ptr() for weight in experts.parameters()} & {place for _, place in kept}
    # Only the second product, which the routing weights multiply, has rows of this width: the first one's are not kept.
    assert [shape for shape, _ in kept].count((N_TOKENS * TOP_K, experts.hidden_dim)) == 1


def paths_taken(monkeypatch):
    taken = []
    run = frozen_experts.run_frozen_experts
    monkeypatch.setattr(frozen_experts, "run_frozen_experts", lambda *args: taken.append("here") or run(*args))
    return taken


def test_only_frozen_experts_without_a_kernel_are_run_here(monkeypatch, caplog):
    taken = paths_taken(monkeypatch)
    model = build_tiny_model("v1")[0].requires_grad_(False)
    experts, ids = routed_experts(model), torch.arange(5, 15)[None]
    n_layers = use_frozen_experts(model)
    assert n_layers == use_frozen_experts(model) > 0
    frozen_experts.log_path.cache_clear()
    with caplog.at_level(logging.INFO, "dsocr"):
        plain = model(input_ids=ids).logits
        model(input_ids=ids)
    assert len(taken) == 2 * n_layers
    lines = [record.message for record in caplog.records if "routed experts" in record.message]
    assert len(lines) == 1 and lines[0].startswith("routed experts (float32, cpu): one product per expert")
    taken.clear()

    model.set_experts_implementation("eager")
    torch.testing.assert_close(model(input_ids=ids).logits, plain)
    model.set_experts_implementation("grouped_mm")
    for trained in WEIGHTS:
        for layer in model.model.language_model.layers:
            if hasattr(layer.mlp, "experts"):
                getattr(layer.mlp.experts, trained).requires_grad_(True)
        model(input_ids=ids).logits.sum().backward()
        assert getattr(experts, trained).grad.abs().sum() > 0
        model.requires_grad_(False)
    monkeypatch.setattr(frozen_experts, "has_grouped_kernel", lambda *args: True)
    with caplog.at_level(logging.INFO, "dsocr"):
        model(input_ids=ids)
    assert not taken
    assert "transformers' way, because one kernel multiplies all experts" in caplog.messages[-1]


def test_lora_on_experts_is_left_to_transformers(monkeypatch):
    taken = paths_taken(monkeypatch)
    model = build_tiny_model("v1")[0].requires_grad_(False)
    use_frozen_experts(model)
    config = LoraConfig(r=4, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    adapted = get_peft_model(model, config)
    ids = torch.arange(5, 15)[None]
    adapted(input_ids=ids).logits.sum().backward()
    with torch.no_grad():
        adapted(input_ids=ids)
    assert not taken
    gradients = [parameter.grad for name, parameter in adapted.named_parameters() if "lora_B" in name]
    assert gradients and all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


@pytest.mark.parametrize(
    ("device", "dtype", "capability", "platform", "expected"),
    [
        ("cuda", HALF, (9, 0), "linux", True),
        ("cuda", HALF, (10, 3), "linux", True),
        ("cuda", HALF, (8, 0), "linux", False),
        ("cuda", HALF, (12, 0), "linux", False),
        ("cuda", HALF, (7, 5), "linux", False),
        ("cuda", torch.float16, (9, 0), "linux", False),
        ("cuda", HALF, (9, 0), "win32", False),
        ("cpu", HALF, None, "linux", False),
    ],
)
def test_where_the_kernel_is(monkeypatch, device, dtype, capability, platform, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(frozen_experts.sys, "platform", platform)
    assert has_grouped_kernel(torch.device(device), dtype) is expected


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_loaded_model_trains_with_the_same_numbers(one_thread, monkeypatch, checkpointing):
    taken = paths_taken(monkeypatch)
    gradients = []
    for here in (True, False):
        torch.manual_seed(0)
        model, _ = load_tiny_base()
        if not here:
            for module in model.modules():
                if type(module).__name__ in frozen_experts.EXPERTS_CLASSES:
                    del module.forward
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules=LANGUAGE_MODEL_TARGETS, init_lora_weights=False))
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            adapted.enable_input_require_grads()
        adapted.train()
        ids = torch.arange(5, 45).view(2, 20)
        adapted(input_ids=ids, labels=ids).loss.backward()
        gradients.append({n: p.grad for n, p in adapted.named_parameters() if p.grad is not None})
        assert bool(taken) is here
        taken.clear()
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_a_copied_model_runs_its_own_experts():
    model, _ = load_tiny_base()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in routed_experts(copied).parameters():
            parameter.zero_()
    assert routed_experts(copied).forward.args[0] is routed_experts(copied)
    assert observe_experts(copied).describe() == observe_experts(model).describe()
    assert "frozen experts of dsocr through aten::mm: " in observe_experts(model).describe()


@pytest.mark.parametrize("kind", ["every expert", "an expert with one row"])
def test_packed_experts_are_unpacked_one_by_one_and_read_once(monkeypatch, watched, kind):
    packed, index = Experts4bit(build_experts("v1", torch.float32, intermediate=64)), route(kind)
    for name in WEIGHTS:
        packed.pack(name)
    unpacked = []
    plain = Experts4bit._unpack
    monkeypatch.setattr(
        Experts4bit,
        "_unpack",
        lambda self, name, codes, *args: unpacked.append(len(codes)) or plain(self, name, codes, *args),
    )

    def run(experts, hidden, index, weights):
        return experts(hidden, index, weights)

    with watched() as here:
        one_by_one = compute(run, packed, index)
    assert here.reads == 1
    assert unpacked == [1] * (4 * len(index.unique()))
    unpacked.clear()
    monkeypatch.setattr(quantized_experts, "has_grouped_kernel", lambda *args: True)
    with watched() as grouped:
        whole = compute(run, packed, index)
    assert grouped.reads == 4 and unpacked == [N_EXPERTS] * 4
    assert all(map(torch.equal, one_by_one, whole))
