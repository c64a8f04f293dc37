"""README and docs/: commands that run, flags and paths that exist, Python that works, within the size of a page."""

import contextlib
import functools
import io
import os
import re
import subprocess
from pathlib import Path

import pytest
from guides import run_guide, split_command, start
from markdown import GUIDES, blocks, commands, flags, links, of_file, paths
from source_tree import ROOT

from deas_vla import cli, launch
from deas_vla.config import parse
from deas_vla.export.export import ExportConfig

NAMES = [str(path.relative_to(ROOT)) for path in GUIDES]
# Guides whose commands are run for real, at a tiny size, in this order: one uses what another has made.
RUN = (
    "docs/improve.md",
    "docs/evaluate.md",
    "docs/critic.md",
    "docs/policies.md",
    "docs/data.md",
    "docs/export.md",
    "docs/simulators.md",
)
# What makes a command small enough for a test. It is put behind the flags of the guide.
SIMULATOR = "--workers=0 --parallel_episodes=3 --simulator.horizon=48"
TRAINING = "--training.steps=4 --training.batch_size=8"
TINY = {
    "recipes/collect_demos.py": f"{SIMULATOR} --demos.episodes=5",
    "recipes/collect_rollouts.py": f"{SIMULATOR} --rollouts.episodes=6",
    "recipes/finetune_policy.py": f"{TRAINING} --policy.layers=2 --policy.embedded.vision_layers=1 "
    "--policy.embedded.text_layers=1",
    "recipes/train_critic.py": f"{TRAINING} --critic.hidden_dim=32 --critic.num_layers=2 --features.dim=8 "
    "--image_encoder.dim=8 --image_encoder_training.steps=4 --image_encoder_training.batch_size=8",
    "recipes/evaluate.py": f"{SIMULATOR} --evaluation.scenes=2 --evaluation.samples=1 --evaluation.num_candidates=2 "
    "--evaluation.candidate_counts=1,2 --evaluation.oracle_scenes=1",
}
# Programs of others, and what takes minutes or a robot even at a tiny size: the flags are checked, it is not run. But
# tests/test_lerobot_way.py runs all of docs/lerobot.md.
FOREIGN = {"lerobot-eval", "lerobot-train", "tensorboard", "pip", "git", "cd", "source", "export"}
ONLY_PARSED = {
    "recipes/finetune_robocasa.py",
    "recipes/finetune_metaworld.py",
    "recipes/adopt_policy.py",
    "robots.rollout",
}


def parsed(what: str, arguments: list[str]) -> list[object]:
    """The configuration that a recipe makes of its arguments, without running it; empty if it is refused."""
    found, run_recipe = [], launch.run_recipe
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "run_recipe", lambda main, config, argv=None: run_recipe(found.append, config, arguments))
        start(what, arguments, patch)
    return found


def recipes() -> list[str]:
    return [f"recipes/{path.name}" for path in sorted((ROOT / "recipes").glob("*.py")) if path.stem != "__init__"]


@pytest.mark.unit
def test_the_readme_is_short():
    lines = of_file(ROOT / "README.md").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


@pytest.mark.unit
@pytest.mark.parametrize("name", NAMES)
def test_links_and_paths_lead_somewhere(name):
    text = of_file(ROOT / name)
    missing = [link for link in links(text) if not ((ROOT / name).parent / link).exists()]
    missing += [path for path in paths(text) if not (ROOT / path).exists()]
    assert not missing


@functools.cache
def known_flags() -> set[str]:
    """Of all recipes, the robots' program and `deas-vla`, and those of others' programs that the guides name."""
    known = {"help", "config", "config_file", "policy.path", "policy.push_to_hub", "policy.rate_hz", "rename_map"}
    known |= {"dataset.repo_id", "dataset.root", "env.type", "eval.n_episodes", "output_dir"}
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        for what in [*recipes(), "robots.rollout"]:
            parsed(what, ["--help"])
        parsed("robots.rollout", ["--help", "--robot.type=so101_follower"])
        for command in ("audit", "critique", "declare", "export", "inspect", "label"):
            with contextlib.suppress(SystemExit):
                cli.main([command, "--help"])
    return known | set(re.findall(r"--([\w.]+)", shown.getvalue()))


@pytest.mark.unit
@pytest.mark.parametrize("name", NAMES)
def test_every_flag_exists(name):
    assert flags(of_file(ROOT / name)) - known_flags() == set()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the files that the guides show: Python that begins with `# its_name.py`."""
    folder = tmp_path_factory.mktemp("workshop")
    for path in GUIDES:
        for block in blocks(of_file(path), "python"):
            if file := re.match(r"# (\w+\.py)\n", block):
                (folder / file[1]).write_text(block)
    return folder


@pytest.mark.unit
@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_understood(name, folder, monkeypatch):
    """Scripts and modules exist and take these flags; targets of make exist."""
    monkeypatch.chdir(folder)
    for words in commands(of_file(ROOT / name)):
        what, arguments = split_command(words)
        if what == "make":
            done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
        elif what == "deas-vla":
            assert arguments[0] in {"doctor", "audit", "critique", "declare", "export", "label", "verify", "inspect"}
            if arguments[0] == "export":
                parse(ExportConfig, arguments[1:])
        elif what.startswith("recipes/") or what == "robots.rollout":
            assert parsed(what, arguments), words
        else:
            where = ROOT / what.replace(".", "/")
            assert what in FOREIGN or where.with_suffix(".py").is_file() or (ROOT / what).is_file(), words


def is_run(what: str, arguments: list[str]) -> bool:
    """Whether a command of the guides is run, and not only understood: see FOREIGN and ONLY_PARSED."""
    users_own = any(argument.partition("=")[2].startswith("/") for argument in arguments)  # --dataset=/data/mine
    users_own |= arguments[:1] == ["label"]  # waits for somebody
    return what not in FOREIGN | ONLY_PARSED | {"make"} and not what.startswith("studies") and not users_own


@pytest.fixture(scope="module")
def workshop(folder) -> Path:
    """The folder after every command of the guides has been run in it, at a tiny size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in RUN:
            for _ in run_guide(name, TINY, patch, is_run):
                pass
    return folder


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(900)
def test_the_commands_of_the_guides_run(workshop):
    made = {path.name for path in (workshop / "outputs" / "lift").iterdir()}
    assert {"demonstrations", "policy", "rollouts", "critic", "evaluation", "report.html", "report.json"} <= made


@pytest.mark.slow
@pytest.mark.sim
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in NAMES if blocks(of_file(ROOT / name), "python")])
def test_the_python_of_the_guides_runs(name, workshop, monkeypatch):
    """One after the other in one namespace, as in a notebook."""
    monkeypatch.chdir(workshop)
    monkeypatch.syspath_prepend(os.getcwd())
    namespace = {"__name__": "guide"}
    for block in blocks(of_file(ROOT / name), "python"):
        exec(compile(block, name, "exec"), namespace)
