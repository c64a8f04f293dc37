"""How much ways to fine-tune a policy gain, scene by scene: numbers and one table."""

from studies.grid import Grid
from studies.markdown import gap, rate, rate_range, table
from studies.runs import cell_of, gain_over, level_of

# What is played with each policy: the policy as it is, without its noise, and best of N by one critic. Fine-tuning on
# chosen chunks also makes a policy less noisy; without noise, what it has learnt besides is seen.
METHODS = ALONE, ZERO_NOISE, CHOSEN = "alone", "zero_noise", "best_of_n"


def judge(outcomes: dict[str, list[dict[str, dict[str, list[dict]]]]], *, base: str, default: str) -> dict:
    """Success of every variant, and its paired differences from where it began and from the default.

    Args:
        outcomes: variant to what each of its policies did, one a training seed: task to method to its episodes. One
            that was not played is left out.
        base: name of the policy that all began with; it has one entry, for all seeds.
        default: name of the variant that others are compared with.

    Returns:
        ``base``: method to success, and ``variants``: name to ``policies`` (how many), method to success, ``over_base``
        and ``over_default``, as `level_of` and `gain_over` give them.
    """
    seeds = max(map(len, outcomes.values()))
    grids = {name: _grids(played * seeds if name == base else played) for name, played in outcomes.items()}
    variants = {}
    for name, of_method in grids.items():
        if name != base:
            variants[name] = {"policies": len(outcomes[name])} | {
                method: level_of(grid)
                | {
                    "over_base": gain_over(grid, grids[base][method]),
                    "over_default": gain_over(grid, grids[default][method]) if name != default else None,
                }
                for method, grid in of_method.items()
            }
    alone = _grids(outcomes[base])
    return {"base": {method: level_of(grid) for method, grid in alone.items()}, "variants": variants}


def policy_ablation_table(results: dict) -> str:
    """The Markdown table of an ablation, best first; the policy before any fine-tuning comes last.

    Args:
        results: as `judge` returns, with ``candidates``, and ``seconds`` of every variant.
    """
    rows = [
        [
            f"`{name}`",
            *(cell for method in METHODS for cell in (_level(entry.get(method)), _gap(entry.get(method)))),
            entry["policies"],
            f"{entry['seconds']:.0f}",
        ]
        for name, entry in sorted(results["variants"].items(), key=lambda item: -item[1][ALONE]["success"])
    ]
    before = [cell for method in METHODS for cell in (_level(results["base"].get(method)), None)]
    rows.append(["before", *before, None, None])
    played = ("alone", "without noise", f"best of {results['candidates']}")
    header = ["fine-tuning", *(cell for name in played for cell in (name, "over the default"))]
    return table([*header, "policies", "s each"], rows)


def _grids(played: list[dict[str, dict[str, list[dict]]]]) -> dict[str, Grid]:
    """Method to its grid over training seeds and tasks."""
    grids: dict[str, Grid] = {}
    for seed, by_task in enumerate(played):
        for task, methods in enumerate(by_task.values()):
            for method, records in methods.items():
                grids.setdefault(method, {})[seed, task] = cell_of(records)
    return grids


def _level(entry: dict | None) -> str | None:
    return entry and f"{rate(entry['success'])} ({rate_range(entry['ci95'])})"


def _gap(entry: dict | None) -> str | None:
    return gap(entry["over_default"]) if entry and entry["over_default"] else None
