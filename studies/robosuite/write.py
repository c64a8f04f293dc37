"""The results of robosuite's tasks over training seeds: a record of each run, the page, and all numbers."""

import json
from collections.abc import Sequence
from pathlib import Path

from deas_vla.errors import UserError
from deas_vla.files import write_json
from studies.robosuite.figures import figures
from studies.robosuite.page import page
from studies.robosuite.summary import run_names, summarize
from studies.runs import is_finished, new_records, read_records, run_of, run_record, write_page


def write_robosuite_results(
    runs: Path,
    output: Path,
    seeds: list[int],
    *,
    critic_ablations: Sequence[Path] = (),
    policy_ablations: Sequence[Path] = (),
    second_iteration_ablations: Sequence[Path] = (),
    commit: str = "",
) -> dict:
    """Keeps a record of every finished run and writes ``robosuite.md``, its figures and ``robosuite.json`` from all.

    The records lie in ``robosuite/`` beside the page and are to be committed: run folders are large, and may be made
    one by one on several machines. The same records give the same bytes. Nothing is written unless all is well.

    Args:
        runs: folder of studies/robosuite/suite.py, in which each task and seed has its own; what is not there or not
            finished is left out.
        output: folder of the results.
        seeds: the training seeds of the page.
        critic_ablations: folders of studies/ablations/critic.py, for the table of the critic's ingredients; they are
            kept likewise, and an ablation replaces its older self.
        policy_ablations: folders of studies/ablations/policy.py, for that of advantage weighting.
        second_iteration_ablations: folders of studies/ablations/second_iteration.py, for that of the second iteration.
        commit: what fixed the settings before the evaluation scenes were used; only new records need it.

    Returns:
        The content of robosuite.json.

    Raises:
        UserError: if there is no run at all, a run differs from its record, or the runs cannot be one result.
    """
    folder, names = output / "robosuite", run_names(seeds)
    kept = read_records(folder)
    made = {name: run_record(runs / name, commit) for name in names if is_finished(runs / name)}
    new = new_records(folder, kept, made, {name: runs / name for name in made})
    if new and not commit:
        raise UserError(f"say with --commit which commit fixed the settings of {', '.join(new)}")
    ablations = {
        "critic_ablation": critic_ablations,
        "policy_ablation": policy_ablations,
        "second_iteration_ablation": second_iteration_ablations,
    }
    brought = {
        f"{kind}-{ablation.name}": _read_ablation(ablation, kind)
        for kind, folders in ablations.items()
        for ablation in folders
    }
    known = made | kept | brought
    if not known.keys() & set(names):
        raise UserError(
            f"neither {runs} nor {folder} has a finished run of seeds {', '.join(map(str, seeds))}: "
            "run studies.robosuite.suite first"
        )
    results = summarize({name: run_of(known[name]) for name in names if name in known}, seeds)
    for kind in ablations:
        start = f"{kind}-"
        results[f"{kind}s"] = {
            name.removeprefix(start): known[name] for name in sorted(known) if name.startswith(start)
        }
    for name in [*new, *brought]:
        write_json(folder / f"{name}.json", known[name])
    write_page(output, "robosuite", results, page(results), figures(results))
    return results


def _read_ablation(ablation: Path, kind: str) -> dict:
    path = ablation / "ablation.json"
    if not path.is_file():
        raise UserError(
            f"{ablation} has no {path.name}; run python -m studies.ablations.{kind.removesuffix('_ablation')} first"
        )
    return json.loads(path.read_text(encoding="utf-8"))
