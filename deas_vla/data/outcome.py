"""Success, reward and end of recorded episodes: read from columns, or declared, never guessed (design rule 9)."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deas_vla.errors import UserError

SUCCESS_RULES = {
    "column": "next.success says it",
    "done": "next.done means that the task was done",
    "reward": "a next.reward above 0 means that the task was done",
    "always": "every episode ends with its task done",
    "never": "no episode ends with its task done",
}
REWARD_RULES = {"column": "next.reward says it", "success": "1 for the step that succeeds, 0 for every other"}


@dataclass(frozen=True)
class Outcome:
    """What counts as success and reward in a data set that was recorded by others."""

    # `column`: next.success; `done`: next.done means success; `reward`: a next.reward above 0 does; `always`, `never`.
    success: str = "column"
    # `column`: next.reward; `success`: 1 for the step that succeeds, 0 for every other.
    reward: str = "column"

    def __post_init__(self):
        for what, rule, rules in (
            ("success", self.success, SUCCESS_RULES),
            ("reward", self.reward, REWARD_RULES),
        ):
            if rule not in rules:
                raise UserError(f"the rule for {what} is {rule!r}; choose one of {', '.join(rules)}")

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the rules read."""
        needed = {"column": ("next.success",), "done": ("next.done",), "reward": ("next.reward",)}
        return tuple(
            dict.fromkeys(
                (*(("next.reward",) if self.reward == "column" else ()), *needed.get(self.success, ()))
            )
        )

    def of(self, columns: Mapping[str, np.ndarray], rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Success and reward of each row of one episode.

        Args:
            columns: at least those in `columns`, (rows,) each.
            rows: how many rows the episode has, at least 1.

        Returns:
            (rows,) bool and (rows,) float32.
        """
        if self.success in ("always", "never"):
            success = np.zeros(rows, bool)
            success[-1] = self.success == "always"
        elif self.success == "reward":
            success = columns["next.reward"].reshape(rows) > 0
        else:
            success = columns[{"column": "next.success", "done": "next.done"}[self.success]].reshape(rows)
        success = success.astype(bool)
        if self.reward == "column":
            return success, columns["next.reward"].reshape(rows).astype(np.float32)
        rewards = np.zeros(rows, np.float32)
        rewards[: success.argmax() + 1][-1:] = success.any()
        return success, rewards


# Both are columns.
RECORDED = Outcome()


def played_steps(success: np.ndarray) -> int:
    """How many steps were played in an episode of which nothing was stored after its last action.

    A success ends the episode, whatever was recorded after it; without one, the last row is the last observation.
    """
    return int(success.argmax()) + 1 if success.any() else len(success) - 1
