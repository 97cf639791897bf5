"""`expunge doctor`: what this machine has, and what is missing."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from expunge.artifact.store import cache_dir

Finding = tuple[str, str, bool]


def findings() -> list[Finding]:
    """Name, value and whether it is as it should be, for each thing that runs depend on."""
    return [_python(), *map(_package, ("torch", "transformers", "tokenizers", "safetensors")), _extra("peft", "lora"),
            _torchvision(), _device(), _memory(), _cache()]  # fmt: skip


def _python() -> Finding:
    return "python", platform.python_version(), True


def _package(name: str) -> Finding:
    try:
        return name, version(name), True
    except PackageNotFoundError:
        return name, f"missing: pip install {name}", False


def _extra(name: str, extra: str) -> Finding:
    name_, value, there = _package(name)
    return name_, value if there else f"not installed (optional): pip install 'expunge[{extra}]'", True


def _torchvision() -> Finding:
    if importlib.util.find_spec("torchvision") is None:
        return "torchvision", "absent, as it should be", True
    return (
        "torchvision",
        "installed; a build for another torch breaks imports. expunge does not need it",
        True,
    )


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return (
            "device",
            f"{torch.cuda.get_device_name()}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free",
            True,
        )
    return "device", f"CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads", True


def _memory() -> Finding:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (ValueError, OSError):
        return "memory", "unknown on this platform", True
    return "memory", f"{free:.1f} GiB free", free > 1


def _cache() -> Finding:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free / 2**30
    except OSError as error:
        return (
            "cache",
            f"{folder} cannot be written ({error.strerror}); set EXPUNGE_CACHE to another place",
            False,
        )
    used = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 2**20
    return "cache", f"{folder} ({used:.0f} MiB used, {free:.0f} GiB free)", free > 0.2
