"""Experts as upstream stores them, 64 small tensors a layer and factor, put straight into the stacked weight.

transformers stacks the gates, stacks the ups, and concatenates both, which writes every byte of them twice, on one thread.
Here the stacked weight is allocated once and filled by several. What comes out is the same, and saving is transformers'
own (the two operations keep their reverses).
"""

import os
from concurrent.futures import ThreadPoolExecutor

import torch
from transformers import conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ConversionOps,
    MergeModulelist,
    SplitModulelist,
    WeightConverter,
)


_THREADS = min(8, os.cpu_count() or 1)
# By what transformers looks rules up: a model type, and the class of v1's language model.
_KEYS = ("deepseek_ocr2", "UnlimitedOcrTextModel")


class FillModulelist(MergeModulelist):
    """Fill one tensor `[experts, sum of rows, columns]` from lists of `[rows, columns]`."""

    @torch.no_grad
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        lists = [input_dict.pop(pattern) for pattern in source_patterns if pattern in input_dict]
        if any(isinstance(tensors, torch.Tensor) for tensors in lists):
            lists = [list(tensors) for tensors in lists]
        rows = [tensors[0].shape[0] for tensors in lists]
        first = lists[0][0]
        # With an expert missing the shape comes out wrong, which loading reports by the weight's name.
        experts = min(map(len, lists))
        filled = torch.empty(experts, sum(rows), first.shape[1], dtype=first.dtype, device=first.device)

        def fill(expert: int) -> None:
            start = 0
            for tensors, count in zip(lists, rows, strict=True):
                filled[expert, start : start + count].copy_(tensors[expert])
                # Freed at once: nothing is held twice.
                tensors[expert] = None
                start += count

        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(fill, range(experts)))
        return {target_patterns[0]: filled}

    @property
    def reverse_op(self) -> ConversionOps:
        return SplitModulelist(self.dim)


class AlreadyConcatenated(Concatenate):
    """Stands where transformers concatenates what `FillModulelist` has put together."""

    @torch.no_grad
    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        return input_dict


def _faster(rule):
    if not isinstance(rule, WeightConverter):
        return rule
    kinds = [type(operation) for operation in rule.operations]
    if kinds not in ([MergeModulelist], [MergeModulelist, Concatenate]):
        return rule
    operations = [FillModulelist(dim=0)]
    if len(kinds) == 2:
        operations.append(AlreadyConcatenated(dim=rule.operations[1].dim))
    return rule.copy(list(rule._original_source_patterns), list(rule._original_target_patterns), operations=operations)


def speed_up_expert_merging() -> int:
    """Register the faster rules; returns how many there are. A rule that transformers has changed stays as it is."""
    count = 0
    for key in _KEYS:
        rules = conversion_mapping.get_checkpoint_conversion_mapping(key) or []
        faster = [_faster(rule) for rule in rules]
        changed = sum(new is not old for new, old in zip(faster, rules, strict=True))
        if changed:
            conversion_mapping.register_checkpoint_conversion_mapping(key, faster, overwrite=True)
        count += changed
    return count
