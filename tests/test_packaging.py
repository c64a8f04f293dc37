"""Installing and launching: pins that fit, a Makefile that says what is missing, configurations that really launch."""

import configparser
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def setup_cfg() -> dict[str, list[Requirement]]:
    """Extra name, or "" for what is always needed, to requirements."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    groups = {"": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {extra: [Requirement(line) for line in text.split("\n") if line.strip()] for extra, text in groups.items()}


@pytest.mark.unit
def test_everything_that_is_asked_for_has_one_pinned_version_that_fits():
    pins = [Requirement(line) for line in lines("constraints.txt")]
    versions = {pin.name: next(iter(pin.specifier)) for pin in pins}
    assert len(versions) == len(pins)
    assert all(s.operator == "==" for s in versions.values()) and not any(pin.url for pin in pins)
    overrides = {r.name: r for r in map(Requirement, lines("overrides.txt"))}
    for requirement in [r for group in setup_cfg().values() for r in group] + list(overrides.values()):
        if requirement.name == "deas_vla" or (requirement.marker and not requirement.marker.evaluate()):
            continue
        assert requirement.name in versions, f"{requirement} is not in constraints.txt: make constraints"
        assert requirement.specifier.contains(versions[requirement.name].version), requirement


@pytest.mark.unit
def test_plugins_have_the_names_that_lerobot_looks_for():
    """Of a distribution and of the package that it imports under that name; the folder is the third."""
    places = [path.parent for path in ROOT.glob("plugins/*/setup.cfg")]
    assert places
    for place in places:
        parser = configparser.ConfigParser()
        parser.read(place / "setup.cfg", encoding="utf-8")
        assert parser["metadata"]["name"] == place.name and place.name.startswith("lerobot_")
        assert (place / place.name / "__init__.py").is_file()


@pytest.mark.unit
def test_no_file_of_the_packaging_names_an_index():
    for name in ("constraints.txt", "overrides.txt", "setup.cfg", "pyproject.toml", "Makefile"):
        assert "://" not in (ROOT / name).read_text(encoding="utf-8"), name


@pytest.mark.unit
def test_the_doctor_asks_for_every_extra_of_the_demo():
    from deas_vla.doctor import DEMO

    (demo,) = setup_cfg()["demo"]
    assert set(DEMO) == {"", *demo.extras}


@pytest.mark.unit
def test_make_lists_its_targets_and_demo_launches_the_recipe():
    def make(*arguments: str) -> str:
        done = subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout

    told = make("help")
    for target in ("demo", "test", "lint", "clean"):
        assert f"make {target} " in told
    demo = make("--dry-run", "demo", "DEMO_ARGS=--seed=7")
    assert "accelerate launch --config_file accelerate_configs/cpu.yaml recipes/finetune_robocasa.py --seed=7" in demo
    assert "pytest" in make("--dry-run", "test", "TIER=unit")


@pytest.mark.unit
def test_install_says_that_python_is_missing_and_changes_nothing(tmp_path):
    (tmp_path / "tools").mkdir()
    shutil.copy(ROOT / "tools" / "install.sh", tmp_path / "tools")
    environment = os.environ | {"PYTHON": "no-such-python"}
    command = [str(tmp_path / "tools" / "install.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Python 3.12 is missing" in done.stderr and "make again:\n    " in done.stderr
    assert not (tmp_path / ".venv").exists()


@pytest.mark.unit
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_launch_configurations_say_how_many_processes_and_collide_with_no_other_run(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert config["num_processes"] >= config["num_machines"] == (2 if path.stem == "multi_node" else 1)
    assert config["num_processes"] == 1 or config["main_process_port"] == (29500 if path.stem == "multi_node" else 0)


def test_launch_configurations_are_what_accelerate_reads_in_them():
    """By its own parser, which refuses a name that it does not know, and passes over a wrong one in an engine's own."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    kinds = {path.stem: load_config_from_file(str(path)).distributed_type.value for path in CONFIGS}
    assert kinds == {
        "cpu": "MULTI_GPU",
        "single_gpu": "NO",
        "multi_gpu": "MULTI_GPU",
        "multi_node": "MULTI_GPU",
        "fsdp2": "FSDP",
        "deepspeed_zero2": "DEEPSPEED",
        "deepspeed_zero3": "DEEPSPEED",
    }
    for path in CONFIGS:
        command = ["--config_file", str(path), "recipe.py"]
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(command))
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        given |= given.pop("fsdp_config", {}) | given.pop("deepspeed_config", {})
        for name in given.keys() - {"compute_environment", "distributed_type", "same_network"}:
            assert str(getattr(arguments, name)).lower() == str(given[name]).lower(), (path.stem, name)


LAUNCHED = """
import atexit, os, sys
from dataclasses import dataclass
import torch
from deas_vla.errors import UserError
from deas_vla.launch import run_recipe
from deas_vla.training.loop import make_accelerator

@dataclass
class Config:
    fail: bool = False

def main(config):
    accelerator = make_accelerator()
    # Runs before the interpreter ends: a thread of gloo that lived longer would now and then abort the process.
    atexit.register(lambda: config.fail or sys.stderr.write(f"in a group: {torch.distributed.is_initialized()}\\n"))
    rank, total = accelerator.process_index, torch.tensor([accelerator.process_index + 1.0])
    total = accelerator.reduce(total).item()
    sys.stdout.write(f"rank {rank} of {accelerator.num_processes}, {torch.get_num_threads()} threads, {total}\\n")
    sys.stdout.flush()
    if config.fail:
        raise UserError("no such task 'Lfit'")

run_recipe(main, Config)
"""


def launched(folder: Path, config: str, *arguments: str) -> subprocess.CompletedProcess:
    script = folder / "recipe.py"
    script.write_text(LAUNCHED)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / config), str(script), *arguments]
    # Threads are set as for a user who exports nothing.
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)


@pytest.mark.slow
def test_cpu_configuration_starts_two_processes_that_add_up(tmp_path):
    done = launched(tmp_path, "cpu.yaml")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("in a group: False") == 2, done.stderr
    told = sorted(done.stdout.splitlines())
    assert [line.split(",")[0] for line in told] == ["rank 0 of 2", "rank 1 of 2"]
    assert all(line.endswith(", 3.0") for line in told), "the processes do not talk to each other"


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_once_and_repeated_by_the_launcher(tmp_path):
    done = launched(tmp_path, "cpu.yaml", "--fail")
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == ["error: no such task 'Lfit'"]
    assert "error: no such task 'Lfit'" in done.stderr.rpartition("Root Cause")[2]
    assert "recipe.py" not in "".join(line for line in done.stderr.splitlines() if line.lstrip().startswith("File "))


@pytest.mark.slow
def test_the_command_of_the_report_is_the_one_that_was_typed(tmp_path):
    """Without a launcher; with one: test_end_to_end.py."""
    script = tmp_path / "recipe.py"
    script.write_text("from deas_vla.report.report import launch_command\nprint(launch_command())\n")
    arguments, environment = [str(script), "--seed=3", "--task=pick up"], os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout) == ["python", *arguments]


ORPHANED = """
import os, sys, time
from dataclasses import dataclass
from deas_vla.launch import run_recipe

@dataclass
class Config:
    folder: str = ""

def main(config):
    open(os.path.join(config.folder, str(os.getpid())), "w").close()
    time.sleep(300)

run_recipe(main, Config)
"""


@pytest.mark.slow
def test_processes_end_when_their_launcher_is_killed(tmp_path):
    script, folder = tmp_path / "recipe.py", tmp_path / "pids"
    script.write_text(ORPHANED)
    folder.mkdir()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    command += [str(ROOT / "accelerate_configs" / "cpu.yaml"), str(script), f"--folder={folder}"]
    launcher = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        wait_until(lambda: len(list(folder.iterdir())) == 2, 120)
    finally:
        launcher.kill()
        launcher.wait()
    pids = [int(path.name) for path in folder.iterdir()]
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), 30)


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.05)
