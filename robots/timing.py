"""The robot's rate: ticks on the real clock, and an account of those that came late."""

import statistics
import time
from dataclasses import dataclass, field


@dataclass
class Timing:
    """Ticks at a steady rate.

    A tick that comes late is counted, and the next one is due a whole period after it: lost time is never made up by
    playing faster.

    Attributes:
        rate_hz: ticks a second.
        ticks: how many there were.
        missed: how many were late, by any time at all.
        worst_s: the largest delay.
        decisions_s: how long each decision took.
    """

    rate_hz: float
    ticks: int = 0
    missed: int = 0
    worst_s: float = 0.0
    decisions_s: list[float] = field(default_factory=list)
    _due: float = 0.0

    def start(self) -> None:
        """The first period begins now."""
        self._due = time.perf_counter() + 1 / self.rate_hz

    def wait(self) -> None:
        """Waits for the end of the period, and begins the next."""
        late = time.perf_counter() - self._due
        self.ticks += 1
        if late > 0:
            self.missed += 1
            self.worst_s = max(self.worst_s, late)
            self._due += late
        else:
            time.sleep(-late)
        self._due += 1 / self.rate_hz

    def facts(self) -> dict:
        """The account, in milliseconds, as JSON."""
        decisions = [1000 * seconds for seconds in self.decisions_s] or [0.0]
        return {
            "ticks": self.ticks,
            "missed": self.missed,
            "worst_late_ms": round(1000 * self.worst_s, 1),
            "decision_ms": round(statistics.median(decisions), 1),
            "slowest_decision_ms": round(max(decisions), 1),
        }


def summary(facts: list[dict]) -> str:
    """The accounts of several episodes in one line."""
    ticks, missed = sum(f["ticks"] for f in facts), sum(f["missed"] for f in facts)
    late = f", at worst by {max(f['worst_late_ms'] for f in facts):g} ms" if missed else ""
    decision = statistics.median(f["decision_ms"] for f in facts)
    slowest = max(f["slowest_decision_ms"] for f in facts)
    return f"{missed} of {ticks} deadlines missed{late}; a decision takes {decision:g} ms, the slowest {slowest:g} ms"
