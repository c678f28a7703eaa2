"""The paths of docs/speed.md on this device: the plain step, each lever, all together."""

from collections.abc import Iterator
from functools import partial

from dsocr.lab.flops import measure_matrix_rate
from dsocr.lab.gpu_check.setup import CheckSetup, Figures, Probe
from dsocr.lab.levers import ALL, PLAIN
from dsocr.lab.parts import measure_data
from dsocr.lab.training_speed import IMAGE_MODE, benchmark_step, measure_training
from dsocr.lab.training_step import TrainingStep


def _measure(setup: CheckSetup) -> Figures:
    options = benchmark_step(setup.processor(IMAGE_MODE).geometry, setup.size, setup.place)
    rate = measure_matrix_rate(setup.place, options.dtype, setup.matrix_side)
    step = TrainingStep(setup.model(dtype=options.dtype), options)
    rows = measure_training(step, setup.repeats, rate)
    return {
        "plain_samples_per_second": rows[PLAIN]["samples_per_second"],
        "all_samples_per_second": rows[ALL]["samples_per_second"],
        "all_mfu": rows[ALL]["mfu"],
        "matrix_rate": rate,
        "training": rows,
    }


def lever_probes(setup: CheckSetup) -> Iterator[Probe]:
    """Training by path, and what a worker does with one image."""
    yield "training by path", partial(_measure, setup)
    yield "data loader", lambda: measure_data(setup.processor(IMAGE_MODE), setup.dtype)
