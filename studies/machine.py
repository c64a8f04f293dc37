"""What a run ran on: processor and versions, for results that say how much time something took."""

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = ("deas_vla", "accelerate", "gymnasium", "mujoco", "numpy", "ogbench", "torch")


def machine_facts() -> dict:
    """``cpu`` (its name, or the architecture), ``cores`` this process may use, ``system`` and ``versions``."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.processor() or platform.machine()
