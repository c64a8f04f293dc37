"""Versions of what a result or an export was made with."""

import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

PACKAGES = """deas_vla accelerate av deepspeed draccus lerobot mujoco numpy peft robocasa robosuite safetensors torch
transformers"""


def collect_versions() -> dict[str, str]:
    """Versions of Python, the platform and the installed packages that matter; absent ones are left out."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES.split():
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions
