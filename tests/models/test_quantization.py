"""4-bit base models: what is packed, that it computes the same as its expanded weights, and LoRA on it."""

import copy
import itertools
import json
import shutil
import sys

import bitsandbytes
import bitsandbytes.functional as bnb
import pytest
import torch
from helpers.golden import load_golden_model
from helpers.training import build_trainer, line_dataset, logged_losses
from peft import LoraConfig, get_peft_model

from dsocr.data.synthetic import generate_lines
from dsocr.lab.packing import quantize_model
from dsocr.lab.tiny import build_tiny_model
from dsocr.models import ModelLoadError, load_adapter, load_model, prepare_adapter
from dsocr.models.adapter_targets import LANGUAGE_MODEL_TARGETS
from dsocr.models.adapters import base_fingerprint
from dsocr.models.quantization import OcrQuantizationConfig, OcrQuantizer, weight_bytes
from dsocr.models.quantized_experts import WEIGHTS, Experts4bit
from dsocr.training.memory_plan.live_memory import LiveMemory


VERSIONS = ["v1", "v2"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def experts_of(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, Experts4bit)}


def expand_into(plain, quantized):
    """Give a plain model the weights that the packed ones stand for."""
    for name, module in quantized.named_modules():
        if isinstance(module, Experts4bit):
            for weight in WEIGHTS:
                getattr(plain.get_submodule(name), weight).data = module.dequantize(weight)
        elif isinstance(module, bitsandbytes.nn.Linear4bit):
            expanded = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.get_submodule(name).weight.data = expanded
    return plain


@pytest.fixture(scope="module", params=VERSIONS)
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build_tiny_model(request.param, layers=6)[0].save_pretrained(folder)
    return folder


def test_loading_in_4_bit_packs_exactly_what_quantizing_in_memory_packs(checkpoint):
    streamed = load_model(checkpoint, dtype="float32", load_in_4bit=True)
    quantized = quantize_model(load_model(checkpoint, dtype="float32"))
    for (name, left), (other, right) in zip(
        sorted({**dict(streamed.named_parameters()), **dict(streamed.named_buffers())}.items()),
        sorted({**dict(quantized.named_parameters()), **dict(quantized.named_buffers())}.items()),
        strict=True,
    ):
        assert name == other
        assert torch.equal(left, right), name
    ids = torch.randint(5, 100, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(streamed(input_ids=ids).logits, quantized(input_ids=ids).logits)


def test_every_expert_and_linear_layer_is_packed_and_nothing_else(checkpoint):
    model = load_model(checkpoint, dtype="float32", load_in_4bit=True)
    assert len(experts_of(model)) == 5
    plain_names = {name for name, parameter in model.named_parameters() if parameter.is_floating_point()}
    language = {name for name in plain_names if "language_model" in name and "norm" not in name}
    assert all(name.endswith(("embed_tokens.weight", "mlp.gate.weight")) for name in language), language
    assert any("vision_tower" in name for name in plain_names)
    with_vision = load_model(checkpoint, dtype="float32", load_in_4bit=True, quantize_vision=True)
    plain = [name for name, module in with_vision.named_modules() if type(module) is torch.nn.Linear]
    assert plain == ["lm_head"]
    assert weight_bytes(with_vision) < weight_bytes(model) < 0.6 * weight_bytes(load_model(checkpoint, dtype="float32"))
    kinds = [{type(module).__name__ for module in found.modules()} for found in (model, load_model(checkpoint))]
    assert {"Linear4bit", "Experts4bit"} <= kinds[0] and not {"Linear4bit", "Experts4bit"} & kinds[1]


@pytest.mark.parametrize("version", VERSIONS)
def test_upstreams_own_layout_is_quantized_while_it_is_read(version):
    model = load_golden_model(version, load_in_4bit=True)
    expanded = expand_into(load_golden_model(version), model)
    ids = torch.randint(5, 100, (1, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, expanded(input_ids=ids).logits, atol=1e-5, rtol=1e-5)


def test_loading_never_holds_the_whole_model(tmp_path, monkeypatch):
    """Counted on the CPU, where stacking the experts of a layer counts too."""
    # Other threads' tensors are not counted.
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
    build_tiny_model("v1", layers=24)[0].save_pretrained(tmp_path)
    with LiveMemory() as whole:
        full = load_model(tmp_path, dtype="float32")
    size = weight_bytes(full)
    assert whole.peak > 0.9 * size
    stack = max(parameter.nbytes for parameter in full.parameters() if parameter.ndim == 3)
    with LiveMemory() as streamed:
        model = load_model(tmp_path, dtype="float32", load_in_4bit=True)
    assert streamed.peak < weight_bytes(model) + 5 * stack < 0.8 * size


def test_experts_are_stacked_on_the_cpu_whatever_the_device(checkpoint):
    """On a GPU the stacked bf16 experts of a layer would otherwise stand beside the packed model, three times over."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    model = load_model(checkpoint, dtype="float32")
    quantizer = OcrQuantizer(OcrQuantizationConfig(), pre_quantized=False)
    for hf_quantizer, on_cpu in ((quantizer, True), (None, False)):
        rules = get_model_conversion_mapping(model, hf_quantizer=hf_quantizer)
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        assert len(converters) >= 2 and all(rule.force_cpu is on_cpu for rule in converters)


def test_packing_expert_by_expert_equals_bitsandbytes_on_the_whole_weight():
    experts = next(m for m in build_tiny_model("v1")[0].modules() if type(m).__name__ == "UnlimitedOcrTextExperts")
    weights = {name: getattr(experts, name).data.clone() for name in WEIGHTS}
    packed = Experts4bit(experts)
    for name, weight in weights.items():
        packed.pack(name)
        values, state = bnb.quantize_4bit(weight, compress_statistics=True, quant_type="nf4", blocksize=64)
        assert torch.equal(values.flatten(), getattr(packed, name).flatten())
        assert torch.equal(packed.dequantize(name), bnb.dequantize_4bit(values, state))
        chosen = torch.tensor([1, 3])
        assert torch.equal(packed.dequantize(name, chosen), packed.dequantize(name)[chosen])
        error = (packed.dequantize(name) - weight).norm() / weight.norm()
        assert 0.08 < error < 0.1


@pytest.mark.parametrize("n_tokens", [30, 1])
def test_packed_experts_compute_what_expanded_experts_compute(n_tokens):
    """One token reaches fewer experts than there are, and only those are expanded."""
    plain = next(m for m in build_tiny_model("v1")[0].modules() if type(m).__name__ == "UnlimitedOcrTextExperts")
    packed = Experts4bit(copy.deepcopy(plain))
    for name in WEIGHTS:
        packed.pack(name)
        getattr(plain, name).data = packed.dequantize(name)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n_tokens, 64, generator=generator)
    index = torch.stack([torch.randperm(4, generator=generator)[:2] for _ in range(n_tokens)])
    weights = torch.rand(n_tokens, 2, generator=generator)
    outputs, gradients = [], []
    for module in (plain, packed):
        inputs = rows.clone().requires_grad_()
        output = module(inputs, index, weights)
        output.square().sum().backward()
        outputs.append(output.detach())
        gradients.append(inputs.grad)
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def lora(**options):
    return LoraConfig(
        **{"r": 4, "lora_alpha": 8, "target_modules": LANGUAGE_MODEL_TARGETS, "target_parameters": EXPERTS, **options}
    )


def randomize(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(std=0.05, generator=generator)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("version", VERSIONS)
def test_lora_on_packed_experts_is_exact(version, checkpointing):
    plain = build_tiny_model(version)[0]
    quantized = quantize_model(copy.deepcopy(plain))
    expand_into(plain, quantized)
    reference = get_peft_model(plain, lora())
    adapted = get_peft_model(quantized, prepare_adapter(quantized, lora()))
    ids = torch.randint(5, 100, (2, 40), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (reference, adapted):
        randomize(model)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.eval()
        with torch.no_grad():
            model(input_ids=ids)
        # A forward in evaluation before: bitsandbytes' repacking for AVX512 would lose the gradients of the next step.
        model.train()
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    assert found[0].keys() == found[1].keys()
    assert sum(".experts." in name for name in found[1]) == 2 * 2 * 2
    for name, gradient in found[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(found[1][name], gradient, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_adapter_on_packed_experts_loads_on_both_bases(tmp_path, version):
    quantized = quantize_model(build_tiny_model(version)[0])
    assert base_fingerprint(quantized) == base_fingerprint(build_tiny_model(version)[0])
    adapted = get_peft_model(quantized, prepare_adapter(quantized, lora()))
    randomize(adapted)
    adapted.save_pretrained(tmp_path)
    ids = torch.randint(5, 100, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = adapted.eval()(input_ids=ids).logits
        again = load_adapter(quantize_model(build_tiny_model(version)[0]), tmp_path)
        assert torch.equal(again.eval()(input_ids=ids).logits, expected)
        plain = expand_into(build_tiny_model(version)[0], quantize_model(build_tiny_model(version)[0]))
        full = load_adapter(plain, tmp_path)
        torch.testing.assert_close(full.eval()(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_merging_into_packed_experts_is_refused():
    quantized = quantize_model(build_tiny_model("v1")[0])
    adapted = get_peft_model(quantized, prepare_adapter(quantized, lora()))
    with pytest.raises(ValueError, match="cannot be merged into 4-bit experts.*without load_in_4bit"):
        adapted.merge_and_unload()


def test_training_on_a_4_bit_base(tmp_path):
    lines = list(itertools.islice(generate_lines("print", seed=5, max_length=6), 16))
    dataset = line_dataset(tmp_path / "data", lines)
    model, processor = build_tiny_model("v1")
    config = lora(r=8)
    trainer = build_trainer(
        tmp_path / "run",
        dataset,
        model=(quantize_model(model), processor),
        peft_config=config,
        max_steps=30,
        learning_rate=1e-2,
        per_device_train_batch_size=8,
        activation_checkpointing=True,
    )
    trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    # TRL would round them to bf16.
    assert {p.dtype for p in trainable.values()} == {torch.float32}
    assert sum(".experts." in name for name in trainable) == 2 * 2 * 2
    before = {name: p.detach().clone() for name, p in trainable.items()}
    packed = {name: b.clone() for name, b in trainer.model.named_parameters() if not b.is_floating_point()}
    trainer.preflight(strict=False)
    trainer.train()
    losses = logged_losses(trainer)
    assert losses[-1] < losses[0] - 0.3
    assert all(not torch.equal(before[name], parameter) for name, parameter in trainable.items())
    assert all(torch.equal(packed[n], p) for n, p in trainer.model.named_parameters() if n in packed)


def test_a_checkpoint_that_is_quantized_already_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "quantized"
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelLoadError, match="quantised already .bitsandbytes.*16-bit checkpoint"):
        load_model(folder)


def test_without_bitsandbytes_4_bit_is_refused_by_name(checkpoint, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("bitsandbytes", "dsocr.models.quantization"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelLoadError, match="--load_in_4bit needs bitsandbytes.*pip install -r requirements.txt"):
        load_model(checkpoint, load_in_4bit=True)


def test_a_device_that_bitsandbytes_does_not_know_is_refused_by_name(checkpoint, monkeypatch):
    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"nothing"})
    with pytest.raises(ModelLoadError, match="None of the available devices"):
        load_model(checkpoint, load_in_4bit=True)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("targets", [r".*mlp\.experts", r".*mlp\.experts\.(gate_up|down)_proj.*", ["experts"]])
def test_target_modules_that_hit_the_routed_experts_are_refused(quantized, targets):
    model = build_tiny_model("v1")[0]
    model = quantize_model(model) if quantized else model
    with pytest.raises(ValueError, match="matches the routed experts.*--lora_target_parameters"):
        prepare_adapter(model, LoraConfig(target_modules=targets))


def test_target_parameters_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="mlp.experts.up_proj: the model has no stacked weight"):
        prepare_adapter(build_tiny_model("v1")[0], lora(target_parameters=["mlp.experts.up_proj"]))
    fitting = prepare_adapter(build_tiny_model("v1")[0], lora())
    assert set(fitting.target_parameters) == set(EXPERTS)
