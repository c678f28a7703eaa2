"""Driver, compilers and libraries, and the matrix rates of the device."""

import importlib.util
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from dsocr.common.machine import describe_machine
from dsocr.lab.flops import measure_matrix_rate
from dsocr.lab.gpu_check.setup import CheckSetup, Figures, NotOnThisDevice, Probe


_QUERIED = ("name", "driver_version", "memory.total", "compute_cap", "power.limit", "clocks.max.sm")


def _read_driver() -> Figures:
    if not shutil.which("nvidia-smi"):
        raise NotOnThisDevice("there is no nvidia-smi, so no NVIDIA driver")
    command = ["nvidia-smi", f"--query-gpu={','.join(_QUERIED)}", "--format=csv,noheader"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise RuntimeError(f"nvidia-smi ended with {ended.returncode}: {ended.stdout or ended.stderr}")
    values = [value.strip() for value in ended.stdout.splitlines()[0].split(",")]
    return dict(zip((name.replace(".", "_") for name in _QUERIED), values, strict=True))


def _read_cuda(setup: CheckSetup) -> Figures:
    if not setup.on_gpu:
        raise NotOnThisDevice(f"torch {torch.__version__} uses the CPU")
    capability = torch.cuda.get_device_capability()
    return {
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),
        "capability": f"{capability[0]}.{capability[1]}",
        "compiled_for": " ".join(torch.cuda.get_arch_list()),
        "half_type": str(setup.dtype).removeprefix("torch."),
    }


def _find_compiler() -> Figures:
    path = shutil.which("gcc") or shutil.which("cc") or shutil.which("cl")
    if path is None:
        raise NotOnThisDevice("no C compiler (gcc, cc, cl) on the PATH; Triton needs one")
    first = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return {"compiler": path, "version": first[0] if first else "unknown"}


def _find_header() -> Figures:
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not header.is_file():
        raise NotOnThisDevice(f"{header} does not exist; Triton needs it (package python3-dev)")
    return {"header": str(header)}


def _find_triton() -> Figures:
    if importlib.util.find_spec("triton") is None:
        raise NotOnThisDevice("triton is not installed; it comes with torch for CUDA on Linux")
    return {"triton": version("triton")}


def _try_bitsandbytes(setup: CheckSetup) -> Figures:
    import bitsandbytes.functional as bnb

    values = torch.randn(256, 256, device=setup.place, dtype=setup.dtype)
    packed, state = bnb.quantize_4bit(values, blocksize=64, quant_type="nf4")
    error = (bnb.dequantize_4bit(packed, state) - values).float().norm() / values.float().norm()
    return {"bitsandbytes": version("bitsandbytes"), "nf4_error": float(error)}


def _measure_rate(setup: CheckSetup, dtype: torch.dtype, tf32: bool) -> Figures:
    if tf32 and not setup.on_gpu:
        raise NotOnThisDevice("TF32 is a mode of CUDA's matrix units")
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        return {"tflops": measure_matrix_rate(setup.place, dtype, setup.matrix_side) / 1e12}
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def environment_probes(setup: CheckSetup) -> Iterator[Probe]:
    """Driver, CUDA, compiler, header, Triton, bitsandbytes; a large matrix product in every type."""
    yield "machine", describe_machine
    yield "driver", _read_driver
    yield "CUDA", partial(_read_cuda, setup)
    yield "compiler", _find_compiler
    yield "Python.h", _find_header
    yield "Triton", _find_triton
    yield "bitsandbytes", partial(_try_bitsandbytes, setup)
    yield "matrix rate bfloat16", partial(_measure_rate, setup, torch.bfloat16, False)
    yield "matrix rate float16", partial(_measure_rate, setup, torch.float16, False)
    yield "matrix rate float32", partial(_measure_rate, setup, torch.float32, False)
    yield "matrix rate TF32", partial(_measure_rate, setup, torch.float32, True)
