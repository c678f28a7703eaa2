"""Prepare this machine for a run, and describe it for logs."""

import logging
import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version

import psutil
import torch
import torch.distributed as dist


logger = logging.getLogger(__name__)

_REPORTED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "pillow")

# Blocks of 16 MiB that Pillow keeps for the next image.
_IMAGE_BLOCKS = 8


def prepare_process() -> None:
    """Set UTF-8 on the console (also on Windows), switch telemetry off, take one GPU, and flush denormals on the CPU.

    Without this TRL reports model type, device and GPU name of every run; nothing may be uploaded unasked.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="replace")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    from huggingface_hub import constants

    # huggingface_hub evaluates the variable when it is imported, which may have happened already: set its constant too.
    constants.HF_HUB_DISABLE_TELEMETRY = True
    _keep_image_memory()
    _take_one_gpu()
    # A random SAM produces many denormals, which make a CPU ten times slower.
    torch.set_flush_denormal(True)
    if not torch.cuda.is_available() and torch.get_num_threads() == 1 and not _threads_were_chosen():
        # `accelerate launch` sets OMP_NUM_THREADS=1 by default, which leaves all cores but one idle.
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // processes))


def _keep_image_memory() -> None:
    """Let Pillow keep the memory of freed images for the next ones.

    Fresh pages are a good part of the time of cutting a line into tiles (`recipes/benchmark.py --parts cutting`). DataLoader
    workers read the variable when they import Pillow.
    """
    os.environ.setdefault("PILLOW_BLOCKS_MAX", str(_IMAGE_BLOCKS))
    from PIL import Image

    Image.core.set_blocks_max(int(os.environ["PILLOW_BLOCKS_MAX"]))


def _take_one_gpu() -> None:
    """Let a process without others see its first GPU alone.

    With two visible GPUs and one process, TrainingArguments asks for DataParallel, which SFTTrainer refuses after the
    model is loaded. torch reads the variable when CUDA starts, which has not happened yet.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[0]


def half_dtype() -> torch.dtype:
    """The 16-bit type that this machine's GPU computes with: bfloat16, or float16 before Ampere (T4, V100)."""
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def working_dtype() -> torch.dtype:
    """The type of weights that training and reading use on this machine: `half_dtype` on a GPU, float32 on a CPU."""
    return half_dtype() if torch.cuda.is_available() else torch.float32


def _threads_were_chosen() -> bool:
    """Whether a person, not `accelerate launch`, chose the number of threads."""
    if "OMP_NUM_THREADS" not in os.environ:
        return False
    # accelerate sets this variable, and OMP_NUM_THREADS, in the processes it starts.
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return True
    try:
        launcher = psutil.Process(os.getppid())
        asked = any(word.startswith("--num_cpu_threads_per_process") for word in launcher.cmdline())
        return asked or "OMP_NUM_THREADS" in launcher.environ()
    except psutil.Error:
        return False


def process_rank() -> tuple[int, int]:
    """This process's rank and the number of processes; `(0, 1)` without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def find_unused_gpu() -> str | None:
    """Name the machine's NVIDIA card and the reason if torch cannot use it; `None` if it can, or there is no card."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.cuda.is_available() or hidden or not shutil.which("nvidia-smi"):
        return None
    found = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    cards = [line for line in found.stdout.splitlines() if line.startswith("GPU ")]
    if found.returncode != 0 or not cards:
        return None
    if torch.version.cuda:
        reason = (
            f"the driver is too old or broken for torch {torch.__version__} with CUDA {torch.version.cuda}, so training "
            "runs on the CPU. Update the driver, or install a torch build for an older CUDA (pytorch.org/get-started)"
        )
    else:
        reason = (
            f"torch {torch.__version__} is a CPU build, so training runs on the CPU. Replace it: pip install "
            f"--force-reinstall torch=={torch.__version__.split('+')[0]} --index-url ADDRESS, with the address that "
            "pytorch.org/get-started names for CUDA (12.8 or newer for RTX 50 cards)"
        )
    card = cards[0].split(" (UUID")[0]
    return f"this machine has {card}, but {reason}."


def warn_about_unused_gpu() -> bool:
    """Warn if torch cannot use the machine's NVIDIA card, and say why; returns whether it warned."""
    message = find_unused_gpu()
    if message is not None:
        logger.warning("%s", message)
    return message is not None


def describe_machine() -> dict[str, str]:
    """Versions and hardware, for logs and results."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        device = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    versions = {name: version(name) for name in _REPORTED}
    return {
        "device": device,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **versions,
    }


def peak_memory_gib() -> float:
    """Peak memory of this process in GiB: allocated on the GPU, resident on a CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**30
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
