"""Where the letters stand, and where the decoder looks."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

from dsocr.lab.base.alignment import align_letters, guidance_loss


def collapse(path, blank):
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != blank]


@pytest.mark.parametrize("target", [[1], [1, 2], [2, 2], [1, 2, 1], [1, 1, 2]])
def test_the_path_is_the_best_of_all_paths(target):
    """Against every path there is, and none of it longer than CTC's own sum over paths."""
    rng = torch.Generator().manual_seed(len(target) + sum(target))
    scores = torch.randn(6, 1, 3, generator=rng).log_softmax(-1)
    paths = [path for path in itertools.product(range(3), repeat=6) if collapse(path, 0) == target]
    best = max(paths, key=lambda path: sum(scores[i, 0, symbol].item() for i, symbol in enumerate(path)))
    firsts = [i for i, symbol in enumerate(best) if symbol and (i == 0 or best[i - 1] != symbol)]
    assert align_letters(scores.numpy(), [target], 0)[0].tolist() == firsts
    summed = -functional.ctc_loss(scores, torch.tensor([target]), [6], [len(target)], reduction="none").item()
    assert sum(scores[i, 0, symbol].item() for i, symbol in enumerate(best)) <= summed


def test_a_line_of_more_than_sixty_letters():
    scores = np.log(np.full((90, 1, 5), 0.2))
    assert align_letters(scores, [[1, 2] * 40], 0)[0].tolist() == sorted(align_letters(scores, [[1, 2] * 40], 0)[0])


def test_lines_of_several_lengths_and_one_without_room():
    scores = np.log(np.full((4, 3, 5), 0.2))
    long, short, none = align_letters(scores, [[1, 2, 3, 4], [3], [1, 1, 1]], 0)
    assert long.tolist() == [0, 1, 2, 3] and len(short) == 1 and none.tolist() == [-1, -1, -1]


def attention(columns):
    """Two lines of two letters, a prompt of one token before 3 x (4 + 1) image tokens, one token behind them."""
    weights = torch.full((2, 1, 19, 19), 1e-3)
    for line, of_letters in enumerate(columns):
        for letter, column in enumerate(of_letters):
            weights[line, 0, 16 + letter, [1 + row * 5 + column for row in range(3)]] = 0.3
    return weights


def loss(seen, letters):
    shown = (torch.rand(2, 1, 19, 19), attention(seen))
    return guidance_loss(shown, [np.array(line) for line in letters], 1, 17, (3, 4)).item()


def test_only_the_right_column_costs_nothing():
    letters = [[0, 3], [2, 2]]
    right, beside, away = loss(letters, letters), loss([[1, 2], [1, 3]], letters), loss([[2, 1], [0, 0]], letters)
    assert right == pytest.approx(-np.log(0.9), abs=0.01)
    assert right < beside < away
    # A letter without a column counts for nothing.
    assert loss([[0, 0], [2, 0]], [[0, -1], [2, -1]]) == pytest.approx(right, abs=0.01)
    assert loss(letters, [[-1, -1], [-1, -1]]) == 0
