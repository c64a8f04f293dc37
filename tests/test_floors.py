"""The house: what may import what, and what no file may hold."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
# The longest prefix counts. A file on a lower floor never imports one on a higher floor.
FLOORS = {
    "deas_vla": 0,
    "deas_vla.errors": 0,
    "deas_vla.files": 0,
    "deas_vla.config": 0,
    "deas_vla.launch": 0,
    "deas_vla.registry": 0,
    "deas_vla.critic": 0,
    "deas_vla.data": 1,
    "deas_vla.policies": 2,
    "deas_vla.features": 1,
    "deas_vla.scorers": 2,
    "deas_vla.training": 3,
    "deas_vla.improvement": 3,
    "deas_vla.envs": 3,
    "deas_vla.rollouts": 4,
    "deas_vla.report": 4,
    "deas_vla.export": 4,
    "deas_vla.doctor": 5,
    "deas_vla.cli": 5,
}
# Each is imported where it is used, and never by the lower floors.
HEAVY = [
    "lerobot",
    "transformers",
    "peft",
    "accelerate",
    "deepspeed",
    "robosuite",
    "mujoco",
    "ogbench",
    "gymnasium",
    "matplotlib",
    "datasets",
]
# The place itself where LeRobot is used; it is imported when a data set is written.
PLACES_OF_USE = {"deas_vla.data.lerobot.writers"}


def tracked(*suffixes: str) -> list[Path]:
    """The files of the repository, new ones included, ignored ones not."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.splitlines()]
    else:  # an archive without history
        folders = ("deas_vla", "recipes", "robots", "plugins", "studies", "benchmarks", "tests", "tools")
        folders += ("accelerate_configs",)
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
        paths += [path for path in ROOT.iterdir() if path.is_file()]
    return sorted(path for path in paths if path.is_file() and (not suffixes or path.suffix in suffixes))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int:
    name = module
    while name not in FLOORS or (name == "deas_vla" and module != name):
        name = name.rpartition(".")[0]
        assert name, f"{module} has no floor: add it to FLOORS"
    return FLOORS[name]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at any place in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            found.add(node.module)
    return found


MODULES = {module_name(path): path for path in tracked(".py") if path.is_relative_to(ROOT / "deas_vla")}


def test_no_file_imports_from_a_higher_floor():
    assert len(MODULES) > 10
    wrong = []
    for module, path in MODULES.items():
        for imported in imports(path):
            if imported.partition(".")[0] == "deas_vla" and floor_of(imported) > floor_of(module):
                wrong.append(
                    f"{module} (floor {floor_of(module)}) imports {imported} (floor {floor_of(imported)})"
                )
    assert not wrong, "\n".join(wrong)


def test_the_package_imports_nothing_from_recipes_robots_or_tests():
    outside = {
        path.stem
        for folder in ("recipes", "robots", "studies", "benchmarks", "tests")
        for path in ROOT.glob(f"{folder}/*.py")
    }
    wrong = {module: names for module, path in MODULES.items() if (names := imports(path) & outside)}
    assert not wrong


def test_the_critic_needs_torch_and_safetensors_only():
    allowed = {"torch", "safetensors", "numpy", "deas_vla", *sys.stdlib_module_names}
    for module, path in MODULES.items():
        if module.startswith("deas_vla.critic"):
            assert {name.partition(".")[0] for name in imports(path)} <= allowed, module


@pytest.mark.parametrize(
    "what", ["deas_vla", "floors 0 and 1", "the interface of policies, simulators and the command"]
)
def test_importing_brings_nothing_heavy(what):
    if what == "deas_vla":
        names, unwanted = ["deas_vla"], [*HEAVY, "torch", "numpy"]
    elif what == "floors 0 and 1":
        names, unwanted = sorted(m for m in MODULES if floor_of(m) <= 1 and m not in PLACES_OF_USE), HEAVY
    else:
        names, unwanted = ["deas_vla.policies.chunk_policy", "deas_vla.envs.protocol", "deas_vla.cli"], HEAVY
    code = f"import sys, importlib\nfor name in {names}: importlib.import_module(name)\n"
    code += f"print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def calls_that_run_code(tree: ast.AST) -> list[str]:
    """Imports and calls by which reading a file can run code that is in it."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            bad = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
            found += [f"line {node.lineno}: import {name}" for name in names if name.partition(".")[0] in bad]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name == "torch.load" and given.get("weights_only") != "True":
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
            elif name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
                found.append(f"line {node.lineno}: {name} without allow_pickle=False")
            elif name in ("yaml.load", "pd.read_pickle", "torch.jit.load"):
                found.append(f"line {node.lineno}: {name}")
            if given.get("allow_pickle", "False") != "False":
                found.append(f"line {node.lineno}: allow_pickle")
    return found


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        ("import pickle", 1),
        ("from pickle import loads", 1),
        ("torch.load(f)", 1),
        ("torch.load(f, weights_only=False)", 1),
        ("torch.load(f, weights_only=True)", 0),
        ("np.load(f)", 1),
        ("np.load(f, allow_pickle=False)", 0),
        ("np.savez(f, allow_pickle=True)", 1),
        ("safetensors.torch.load_file(f); json.load(f); yaml.safe_load(f)", 0),
    ],
)
def test_rule_11_the_check_itself_finds_what_it_should(code, bad):
    assert len(calls_that_run_code(ast.parse(code))) == bad


def test_rule_11_no_pickle_ever():
    wrong = {}
    for path in tracked(".py"):
        found = calls_that_run_code(ast.parse(path.read_text(encoding="utf-8")))
        if found:
            wrong[str(path.relative_to(ROOT))] = found
    assert not wrong
    assert not tracked(".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".ckpt", ".joblib")


def test_no_file_names_a_path_of_one_machine():
    one_machine = re.compile(rf"{re.escape(str(ROOT))}/|/(?:home|Users|root)/[\w.]|file://")
    wrong = []
    for path in tracked():
        if path == Path(__file__) or path.name == "LICENSE":
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        wrong += [f"{path.relative_to(ROOT)}: {match.group()}" for match in one_machine.finditer(text)]
    assert not wrong
