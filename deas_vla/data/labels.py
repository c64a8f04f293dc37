"""Success and reward of recorded episodes: read from columns, or declared, never guessed (design rule 9)."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from deas_vla.errors import UserError

# Rule to the column that it reads.
SUCCESS_RULES = {"column": "next.success", "done": "next.done", "reward": "next.reward"}
SUCCESS_RULES |= {"always": None, "never": None}
REWARD_RULES = {"column": "next.reward", "success": None}


@dataclass(frozen=True)
class LabelRules:
    """What counts as success and reward in a data set that was recorded by others."""

    # `column`: next.success; `done`: next.done means success; `reward`: a next.reward above 0 does; `always`, `never`.
    success: str = "column"
    reward: str = "column"  # `column`: next.reward; `success`: 1 for the step that succeeds, 0 for every other.

    def __post_init__(self):
        for what, rules in (("success", SUCCESS_RULES), ("reward", REWARD_RULES)):
            rule = getattr(self, what)
            if rule not in rules:
                raise UserError(f"the rule for {what} is {rule!r}; choose one of {', '.join(rules)}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the rules read."""
        return tuple(dict.fromkeys(filter(None, (REWARD_RULES[self.reward], SUCCESS_RULES[self.success]))))

    def of(self, columns: Mapping[str, np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows,) bool success and (rows,) float32 reward of one episode, from its (rows,) columns."""
        success = self._success(columns, rows)
        if self.reward == "column":
            return success, columns["next.reward"].reshape(rows).astype(np.float32)
        rewards = np.zeros(rows, np.float32)
        if success.any():
            rewards[success.argmax()] = 1
        return success, rewards

    def _success(self, columns: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        if name := SUCCESS_RULES[self.success]:
            return columns[name].reshape(rows) > 0
        success = np.zeros(rows, bool)
        success[-1] = self.success == "always"
        return success


@dataclass(frozen=True)
class GivenOutcomes(LabelRules):
    """Success as somebody gave it to each episode, by number: the row whose step succeeds, or None for a failure."""

    success: str = "never"  # no column is read
    outcomes: Mapping[int, int | None] = field(default_factory=dict)

    def _success(self, columns: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        row = self.outcomes[int(columns["episode_index"].flat[0])]
        return np.zeros(rows, bool) if row is None else np.arange(rows) == row


RECORDED = LabelRules()  # both are columns
