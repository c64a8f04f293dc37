"""Several LeRobot data sets as one, each with a weight."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from deas_vla.data.contract import Contract
from deas_vla.data.episodes import Episode
from deas_vla.data.labels import LabelRules
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.errors import ContractMismatch, UserError


@dataclass
class MixtureConfig:
    """LeRobot data sets of one robot, v3, v2.1 or v2.0."""

    folders: list[str] = field(default_factory=list)  # Their folders.
    # How often each is sampled among the options of its group (demonstrations, successes, failures), whatever its
    # size; empty: 1 each.
    weights: list[float] = field(default_factory=list)
    # Images are kept of every so many rows, in data sets of others: a divisor of the critic's horizon.
    image_every: int = 4
    # What counts as success and reward in those that do not say: one with a column next.success, or declared, keeps
    # its own success, and one that this project wrote its reward too.
    labels: LabelRules = field(default_factory=LabelRules)

    def __post_init__(self):
        if self.weights and len(self.weights) != len(self.folders):
            raise UserError(f"{len(self.folders)} folders and {len(self.weights)} weights; give one to each")
        if any(not 0 <= weight < math.inf for weight in self.weights):
            raise UserError(f"weights are {self.weights}; give each data set one of at least 0")
        if self.image_every < 1:
            raise UserError(f"image_every is {self.image_every}; choose 1 or more")


def read_mixture(
    config: MixtureConfig, expected: Contract | None = None
) -> tuple[list[list[Episode]], Contract | None]:
    """The episodes of several data sets of one robot, and the contract that they agree with.

    It is `expected`, or the first one's without statistics. If two differ in names, units, limits, cameras or rate, a
    ContractMismatch says so. Statistics may differ: those of one data set are not those of all.
    """
    contract = None if expected is None else expected.with_statistics(None)
    first, parts, options = "what is expected", [], {"labels": config.labels, "image_every": config.image_every}
    for folder in config.folders:
        try:
            episodes, own, _ = read_dataset(Path(folder), contract, **options)
        except ContractMismatch as error:
            raise ContractMismatch(f"{folder} cannot be mixed with {first}: {error}") from error
        if contract is None:
            first, contract = folder, own.with_statistics(None)
        parts.append(episodes)
    return parts, expected or contract
