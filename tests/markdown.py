"""What the tests of the documentation read in a Markdown file: its code blocks, the commands in them, links, flags."""

import re
import shlex
from pathlib import Path

from source_tree import ROOT

GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(text: str, language: str) -> list[str]:
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of every command in the bash blocks; lines that end with a backslash go on, comments are left out."""
    found = []
    for block in blocks(text, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(words)
    return found


def links(text: str) -> list[str]:
    """Targets of links and images that are no web address, without what follows a #."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", text)
    return [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:", target)]


def paths(text: str) -> list[str]:
    """Files and folders of this repository that are named as `code`."""
    folders = "deas_vla|recipes|robots|plugins|studies|benchmarks|tests|tools|docs|accelerate_configs"
    return re.findall(rf"`((?:{folders})/[\w./-]*)`", text)


def flags(text: str) -> set[str]:
    """Names of the flags that the text speaks of, in `code` and in blocks, without dashes and values."""
    spans = re.findall(r"`([^`\n]+)`", text) + blocks(text, "bash")
    return {name for span in spans for name in re.findall(r"(?<![\w-])--([a-z][\w.-]*)", span)}


def of_file(path: Path) -> str:
    return path.read_text(encoding="utf-8")
