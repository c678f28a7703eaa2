"""Chunks: the unit of data, of the curriculum and of resuming. A chunk's lines follow from seed, number and curriculum."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

from dsocr.lab.base.curriculum import MOST_LETTERS, Curriculum
from dsocr.lab.base.hands import find_hands
from dsocr.lab.base.real_lines import RealLines
from dsocr.lab.base.rendering import Renderer, TrainingLine
from dsocr.lab.base.shape import TILE_SIZE


CHUNK_LINES = 768
# A picture of a single word is nearly as high as wide, or so large that its aspect fits two grids; both get two rows of
# tiles. A share of the shortest lines is shown so once lines have grown.
WORD_GRIDS, WORD_SHARE = ((3, 2), (4, 2)), 0.25


class LineSources:
    """Everything that lines are drawn from.

    Args:
        fonts: Folder of further handwriting fonts; `None` takes the package's alone.
        real_lines: Folder of real lines; `None` never shows any.
    """

    def __init__(self, fonts: str | Path | None, real_lines: str | Path | None):
        hands = find_hands(fonts)
        self.renderers = {
            kind: Renderer(tuple(hand for hand in hands if hand.kind == kind)) for kind in ("print", "hand", "unseen")
        }
        self.real = None if real_lines is None else RealLines(real_lines)

    def draw(self, rng: random.Random, curriculum: Curriculum) -> TrainingLine:
        """One training line."""
        if self.real is not None and rng.random() < curriculum.real:
            line = self.real.pick(rng)
        else:
            kind = "hand" if rng.random() < curriculum.hand else "print"
            line = self.renderers[kind].render(
                rng, 1, curriculum.letters, curriculum.random_letters, curriculum.strength
            )
        if curriculum.hand and line.grid == (2, 1) and rng.random() < WORD_SHARE:
            columns, rows = rng.choice(WORD_GRIDS)
            line = replace(line, image=line.image.resize((columns * TILE_SIZE, rows * TILE_SIZE)))
        return line


def build_chunk(
    sources: LineSources, curriculum: Curriculum, *, seed: int, index: int, batch_size: int, lines: int = CHUNK_LINES
) -> list[list[TrainingLine]]:
    """The batches of a chunk, in the order they are trained on.

    Lines of a batch have the same tile grid and about as many letters; a batch has `batch_size` lines or
    some fewer, so that none is left over.

    Args:
        sources: What lines are drawn from.
        curriculum: Its state.
        seed: Seed of the run.
        index: Number of the chunk.
        batch_size: Most lines of a batch; half of it while lines grow: what is learned first takes steps, not lines.
        lines: Lines of the chunk.
    """
    rng = random.Random(f"{seed}/{index}")
    by_grid: dict[tuple[int, int], list[TrainingLine]] = {}
    for _ in range(lines):
        line = sources.draw(rng, curriculum)
        by_grid.setdefault(line.grid, []).append(line)
    batches = []
    batch_size = -(-batch_size // 2) if curriculum.letters < MOST_LETTERS else batch_size
    for grid in sorted(by_grid):
        alike = sorted(by_grid[grid], key=lambda line: len(line.text))
        count = -(-len(alike) // batch_size)
        bounds = [len(alike) * part // count for part in range(count + 1)]
        batches += [alike[start:stop] for start, stop in itertools.pairwise(bounds)]
    rng.shuffle(batches)
    return batches
