"""What is installed on this machine, what each part of the project still needs, and the command that brings it.

What is needed is read from the installed package's own metadata (setup.cfg), so that the two cannot disagree.
"""

import ctypes.util
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import deas_vla
from deas_vla.envs.rendering import INSTALL_COMMAND as GL_COMMAND
from deas_vla.envs.robocasa.env import ASSET_COMMANDS, INSTALL_COMMANDS

PROJECT = "deas_vla"
CHECKOUT = Path(deas_vla.__file__).parent.parent
GL_PLATFORMS = ("osmesa", "egl")
# Makes a context and nothing else: a library without a driver behind it loads, and fails here.
GL_PROBE = "import mujoco; mujoco.GLContext(16, 16).make_current()"
# What is missing, in words, and what to type to get it.
Need = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Package:
    """One distribution that the project can use.

    Attributes:
        name: its name.
        installed: its version, or None.
        needed: the versions that are asked for, as in ``>=2,<2.3``.
        extras: the extras of this project that ask for it; empty: always needed.
    """

    name: str
    installed: str | None
    needed: str
    extras: tuple[str, ...]

    @property
    def fits(self) -> bool:
        return self.installed is not None and Requirement(f"x{self.needed}").specifier.contains(
            self.installed, prereleases=True
        )


@dataclass(frozen=True)
class Part:
    """Something that a person may want to run.

    Attributes:
        name: what it is called.
        missing: what it still needs, in words; empty: it can run.
        commands: what to type, in order, to get that.
    """

    name: str
    missing: tuple[str, ...]
    commands: tuple[str, ...]


def packages() -> list[Package]:
    """Every distribution that setup.cfg names, with the version that is installed."""
    found: dict[tuple[str, str], set[str]] = {}
    for requirement in _requirements():
        if canonicalize_name(requirement.name) != canonicalize_name(PROJECT):
            extra = (
                str(requirement.marker).rpartition('"')[0].rpartition('"')[2] if requirement.marker else ""
            )
            found.setdefault((requirement.name, str(requirement.specifier)), set()).add(extra)
    return [
        Package(name, _version(name), needed, () if "" in extras else tuple(sorted(extras)))
        for (name, needed), extras in found.items()
    ]


def rendering() -> dict[str, bool]:
    """Which OpenGL platforms MuJoCo can draw with, each tried in a process of its own."""
    working = {}
    for name in GL_PLATFORMS:
        environment = os.environ | {"MUJOCO_GL": name, "PYOPENGL_PLATFORM": name}
        command = [sys.executable, "-c", GL_PROBE]
        done = subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False)
        working[name] = done.returncode == 0
    return working


def machine() -> dict:
    """Python, cores, memory, disk and GPUs."""
    import torch

    return {
        "deas_vla": deas_vla.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "memory_free_gib": round(psutil.virtual_memory().available / 2**30, 1),
        "disk_free_gib": round(shutil.disk_usage(Path.cwd()).free / 2**30, 1),
        "gpus": [
            f"{torch.cuda.get_device_name(i)}, {torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
            for i in range(torch.cuda.device_count())
        ],
    }


def parts(found: list[Package], gl: dict[str, bool]) -> list[Part]:
    """What can be run, and what each still needs. The first is the demo."""
    if not found:
        command = "make install" if _is_checkout() else f"pip install {PROJECT}"
        return [Part("everything", (f"{PROJECT} itself is not installed",), (command,))]

    def part(name: str, *extras: str, draws: bool = False, more: tuple[Need, ...] = ()) -> Part:
        missing, commands = [], []
        wanted = [p for p in found if not p.fits and (not p.extras or set(p.extras) & set(extras))]
        if wanted:
            missing += [
                f"{p.name}{p.needed}" + (f" (is {p.installed})" if p.installed else "") for p in wanted
            ]
            commands.append(_install_command(extras))
        if draws and not any(gl.values()):
            missing.append("a GL library to draw camera images with")
            commands.append(GL_COMMAND)
        for what, how in more:
            missing.append(what)
            commands += how
        return Part(name, tuple(missing), tuple(commands))

    # LeRobot decodes videos with torchcodec, which loads the system's FFmpeg.
    ffmpeg = () if ctypes.util.find_library("avcodec") else (("FFmpeg", ("sudo apt-get install -y ffmpeg",)),)
    compiler = () if shutil.which("g++") else (("a C++ compiler", ("sudo apt-get install -y g++",)),)
    return [
        part("demo: recipes/finetune_robocasa.py", "sim", "lerobot", "groot", "train", "report", draws=True),
        part("recipes/collect_demos.py", "sim", "lerobot", "train", draws=True),
        part("recipes/finetune_policy.py", "lerobot", "groot", "train"),
        part("recipes/collect_rollouts.py", "sim", "lerobot", "groot", "train", draws=True),
        part("recipes/train_critic.py", "lerobot", "groot", "train"),
        part("recipes/evaluate.py", "sim", "groot", "train", "report", draws=True),
        part("recipes/finetune_metaworld.py", "metaworld", "lerobot", "groot", "train", "report", draws=True),
        part("the critic alone, in other programs"),
        part("reading LeRobot data sets with videos", "lerobot", more=ffmpeg),
        part("simulator robosuite", "sim", draws=True),
        part("simulator robocasa", "sim", draws=True, more=_robocasa_needs()),
        part("accelerate_configs/deepspeed_zero2.yaml", "deepspeed", more=compiler),
        part(
            "tests: make test",
            "sim",
            "lerobot",
            "groot",
            "ogbench",
            "train",
            "report",
            "dev",
            draws=True,
            more=ffmpeg,
        ),
    ]


def diagnose() -> dict:
    """Everything that the doctor finds, as JSON values."""
    found, gl = packages(), rendering()
    return {
        "machine": machine(),
        "rendering": gl,
        "packages": [asdict(p) | {"fits": p.fits} for p in found],
        "parts": [asdict(p) | {"ready": not p.missing} for p in parts(found, gl)],
    }


def report(diagnosis: dict) -> str:
    """A diagnosis, for people."""
    m = diagnosis["machine"]
    gpus = ", ".join(m["gpus"]) or "no GPU that torch can use (the demo needs none)"
    drawing = [
        f"{name} {'works' if works else 'does not work'}" for name, works in diagnosis["rendering"].items()
    ]
    lines = [
        f"deas_vla {m['deas_vla']}, Python {m['python']}, {m['system']}",
        f"{m['cores']} cores, {m['memory_gib']} GiB memory ({m['memory_free_gib']} free), "
        f"{m['disk_free_gib']} GiB disk free here",
        gpus,
        f"off-screen drawing: {', '.join(drawing)}",
        "",
        f"     {'package':<24}{'installed':<13}{'needed':<18}extras",
    ]
    for p in diagnosis["packages"]:
        mark = "ok" if p["fits"] else "--"
        extras = ", ".join(p["extras"]) or "(always)"
        lines.append(f"  {mark} {p['name']:<24}{p['installed'] or 'no':<13}{p['needed']:<18}{extras}")
    lines.append("")
    for part in diagnosis["parts"]:
        lines.append(f"  {'ok' if part['ready'] else '--'} {part['name']}")
        if part["missing"]:
            lines.append(f"       needs {', '.join(part['missing'])}")
            lines += [f"       $ {command}" for command in part["commands"]]
    return "\n".join(lines)


def _requirements() -> list[Requirement]:
    try:
        return [Requirement(text) for text in importlib.metadata.requires(PROJECT) or ()]
    except importlib.metadata.PackageNotFoundError:
        return []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_checkout() -> bool:
    return (CHECKOUT / "tools" / "install.sh").is_file()


def _install_command(extras: tuple[str, ...]) -> str:
    names = ",".join(extras)
    return f"EXTRAS={names} tools/install.sh" if _is_checkout() else f'pip install "{PROJECT}[{names}]"'


def _robocasa_needs() -> tuple[Need, ...]:
    """RoboCasa is in no package registry, and its kitchens are a download of their own."""
    spec = importlib.util.find_spec("robocasa")
    if spec is None or not spec.submodule_search_locations:
        return ("robocasa", INSTALL_COMMANDS), ("its kitchen assets", ASSET_COMMANDS)
    fixtures = Path(next(iter(spec.submodule_search_locations))) / "models" / "assets" / "fixtures"
    if not any(fixtures.glob("sinks/*/model.xml")):
        return (("robocasa's kitchen assets", ASSET_COMMANDS),)
    return ()
