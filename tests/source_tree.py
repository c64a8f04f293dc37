"""What the tests of the house read: the files of the repository, what they import, where they repeat themselves."""

import ast
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Every folder that holds code; needed where there is no history to ask, as in an archive.
FOLDERS = (
    "deas_vla", "recipes", "robots", "plugins", "studies", "benchmarks", "tests", "tools", "docs", "accelerate_configs",
)  # fmt: skip


def tracked(*suffixes: str) -> list[Path]:
    """The files of the repository, new ones included and ignored ones not, with one of the suffixes if any is given."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.splitlines()]
    else:
        paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
        paths += [path for path in ROOT.iterdir() if path.is_file()]
    return sorted(path for path in paths if path.is_file() and (not suffixes or path.suffix in suffixes))


def python_files(*folders: str) -> list[Path]:
    """The Python files of the repository in any of these folders."""
    return [path for path in tracked(".py") if path.relative_to(ROOT).parts[0] in folders]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(*folders: str) -> dict[str, str]:
    """Module name to source text."""
    return {module_name(path): path.read_text(encoding="utf-8") for path in python_files(*folders)}


def imports(source: str) -> set[str]:
    """Every module that a file imports, at any place in it: top, function body or TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def arrows(modules: Mapping[str, str]) -> dict[str, set[str]]:
    """Module to those among the modules that it imports; `from a import b` is an arrow to a.b where that is one."""
    graph = {}
    for module, source in modules.items():
        targets = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}": node.module for alias in node.names}
                targets |= {name if name in modules else package for name, package in names.items()}
        graph[module] = (targets & modules.keys()) - {module}
    return graph


def circles(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Sets of modules that reach each other (strongly connected components of more than one module), sorted."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, ahead = set(), [start]
        while ahead:
            for target in graph[ahead.pop()]:
                if target not in seen:
                    seen.add(target)
                    ahead.append(target)
        reached[start] = seen
    groups = {
        tuple(sorted({module, *(other for other in reached[module] if module in reached[other])}))
        for module in graph
        if module in reached[module]
    }
    return sorted(list(group) for group in groups)


def significant_lines(source: str) -> list[tuple[int, str]]:
    """Line number and normalised text of every line but imports, comments and blank lines."""
    skipped = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            skipped |= set(range(node.lineno, node.end_lineno + 1))
    lines = []
    for number, line in enumerate(source.splitlines(), 1):
        text = " ".join(line.partition("  # ")[0].split())
        if text and number not in skipped and not text.startswith("#"):
            lines.append((number, text))
    return lines


def repeated_blocks(modules: Mapping[str, str], size: int = 8) -> list[str]:
    """Blocks of `size` or more equal significant lines that stand at two places or more, longest first."""
    lines = {module: significant_lines(source) for module, source in modules.items()}
    places: dict[tuple[str, ...], list[tuple[str, int]]] = {}
    for module, numbered in lines.items():
        for start in range(len(numbered) - size + 1):
            window = tuple(text for _, text in numbered[start : start + size])
            places.setdefault(window, []).append((module, start))
    repeated = {tuple(where) for where in places.values() if len(where) > 1}
    blocks = []
    for where in repeated:
        if tuple((module, start - 1) for module, start in where) in repeated:
            continue  # the rest of a longer block
        length = size
        while tuple((module, start + length - size + 1) for module, start in where) in repeated:
            length += 1
        blocks.append((length, [f"{module}:{lines[module][start][0]}" for module, start in where]))
    return [f"{length} lines at {', '.join(where)}" for length, where in sorted(blocks, reverse=True)]
