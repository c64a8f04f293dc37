"""The statistics that a data set brings along, against those of its numbers."""

from deas_vla.data.audit.columns import ColumnFacts, against_statistics
from deas_vla.data.audit.findings import ERROR, WARNING, Finding, Findings, of_error
from deas_vla.data.audit.rows import Rows
from deas_vla.data.lerobot.folder import LerobotFolder, read_json, read_lines
from deas_vla.errors import UserError

ALL, EACH = "meta/stats.json", "meta/episodes_stats.jsonl"


class Stored:
    """``stats.json`` of v2.0 and v3, ``episodes_stats.jsonl`` of v2.1.

    Args:
        folder: the data set.
        keys: columns whose statistics matter: those that policies normalise.
        findings: gets what is missing, unreadable or wrong.
    """

    def __init__(self, folder: LerobotFolder, keys: list[str], findings: Findings):
        self.folder, self.keys, self.findings = folder, keys, findings
        self.facts = {key: ColumnFacts() for key in keys}
        self.all, self.each = None, {}
        try:
            if (folder.root / ALL).is_file():
                self.all = read_json(folder.root / ALL, "not readable")
            if (folder.root / EACH).is_file():
                lines = read_lines(folder.root / EACH, episode_index=int, stats=dict)
                self.each = {line["episode_index"]: line["stats"] for line in lines}
        except UserError as error:
            findings.add(of_error(error, "broken-statistics"))
            return
        if self.all is None and not self.each:
            findings.add(
                Finding(WARNING, "no-statistics", f"there is no {ALL}",
                        "this project computes its own; LeRobot's tools need it", ALL)
            )  # fmt: skip

    def add(self, part: Rows) -> None:
        """One episode's rows: kept for the whole, and compared with the episode's own statistics."""
        stored = self.each.get(part.number)
        for key in self.keys:
            if key not in part.columns:
                continue
            values = part.columns[key].reshape(len(part), -1)
            self.facts[key].add(values)
            if stored is not None and key in stored:
                facts = ColumnFacts()
                facts.add(values)
                self._compare(facts, key, stored[key], EACH, (part.number,))

    def compare_all(self) -> None:
        """Compares the statistics of the whole data set, once all rows were added."""
        for key in self.keys if self.all is not None else ():
            if key in self.all:
                self._compare(self.facts[key], key, self.all[key], ALL, ())
            else:
                self.findings.add(
                    Finding(ERROR, "wrong-statistics", f"{ALL} has no statistics of {key}",
                            "compute the statistics anew", ALL, key)
                )  # fmt: skip

    def _compare(self, facts: ColumnFacts, key: str, stored: dict, file: str, episodes: tuple) -> None:
        shape = self.folder.features[key].get("names")
        width = 0 if facts.mean is None else len(facts.mean)
        names = (
            shape if isinstance(shape, list) and len(shape) == width else [f"{key}.{i}" for i in range(width)]
        )
        try:
            found = list(against_statistics(facts, key, names, stored, file, episodes))
        except (AttributeError, TypeError, ValueError) as error:
            found = [
                Finding(ERROR, "broken-statistics", f"the statistics of {key} are not numbers ({error})",
                        "compute the statistics anew", file, key, episodes)
            ]  # fmt: skip
        self.findings.extend(found)
