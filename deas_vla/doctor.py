"""What is installed on this machine, which extras are complete, and the command that brings what is missing.

What is needed is read from the installed package's own metadata (setup.cfg), so that the two cannot disagree.
"""

import importlib.metadata
import os
import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

from packaging.requirements import Requirement

import deas_vla
from deas_vla.envs.rendering import INSTALL_COMMAND as GL_COMMAND
from deas_vla.versions import collect_versions

PROJECT = "deas_vla"
DEMO = ("", "sim", "lerobot", "groot", "train", "report")
# Makes a context and nothing else: a library without a driver behind it loads, and fails here.
GL_PROBE = "import mujoco; mujoco.GLContext(16, 16).make_current()"


def diagnose() -> dict:
    """Everything that the doctor finds, as JSON values.

    ``machine``, versions, cores and GPUs; ``extras``, name ("" is what is always needed) to what it lacks; ``system``,
    name to the command that brings it or "" if it works; ``ready``, whether the demo can run.
    """
    import torch

    drawing = any(draws_with(platform) for platform in ("egl", "osmesa"))
    extras = missing_packages()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": collect_versions() | {"cores": len(os.sched_getaffinity(0)), "gpus": gpus},
        "extras": extras,
        "system": {
            "GL library to render camera images": "" if drawing else GL_COMMAND,
            # LeRobot decodes videos with torchcodec, which loads the system's FFmpeg.
            "FFmpeg to read videos with": "" if find_library("avcodec") else "sudo apt-get install -y ffmpeg",
        },
        "ready": drawing and not any(extras.get(extra, ["not installed"]) for extra in DEMO),
    }


def missing_packages() -> dict[str, list[str]]:
    """Extra to the requirements that are not installed in a version that fits; empty without an installation."""
    found: dict[str, list[str]] = {}
    for text in _requirements():
        requirement = Requirement(text)
        extra = str(requirement.marker).split('"')[-2] if requirement.marker else ""
        lacking = found.setdefault(extra, [])
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            version = importlib.metadata.version(requirement.name)
            if not requirement.specifier.contains(version, prereleases=True):
                lacking.append(f"{wanted} (is {version})")
        except importlib.metadata.PackageNotFoundError:
            lacking.append(wanted)
    return found


def draws_with(gl: str) -> bool:
    """Whether MuJoCo can draw with an OpenGL platform; tried in a process of its own."""
    environment = os.environ | {"MUJOCO_GL": gl, "PYOPENGL_PLATFORM": gl}
    command = [sys.executable, "-c", GL_PROBE]
    return not subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False).returncode


def report(diagnosis: dict) -> str:
    """A diagnosis, for people."""
    lines = [f"{name}: {value}" for name, value in diagnosis["machine"].items()] + [""]
    for extra, missing in diagnosis["extras"].items():
        lines.append(f"  {'--' if missing else 'ok'} {f'extra {extra}' if extra else 'always needed'}")
        if missing:
            lines += [f"       needs {', '.join(missing)}", f"       $ {_install_command(extra)}"]
    for name, command in diagnosis["system"].items():
        lines.append(f"  {'--' if command else 'ok'} {name}" + (f"\n       $ {command}" if command else ""))
    lines.append("the demo can run: make demo" if diagnosis["ready"] else "the demo cannot run yet")
    return "\n".join(lines)


def _requirements() -> list[str]:
    try:
        return importlib.metadata.requires(PROJECT) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _install_command(extra: str) -> str:
    if (Path(deas_vla.__file__).parent.parent / "tools" / "install.sh").is_file():
        return f"EXTRAS={extra} tools/install.sh" if extra else "make install"
    return f"pip install '{PROJECT}[{extra}]'" if extra else f"pip install {PROJECT}"
