"""`deas-vla critique`: a critic, its policy and recordings in; a verdict, its numbers, a figure and films out."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from deas_vla.critique.evidence import Evidence, collect_evidence, to_json, unseen_episodes
from deas_vla.critique.page import Asked, first_of_each, write_page
from deas_vla.critique.verdict import PROGRESS, Critique, judge
from deas_vla.data.lerobot.reader import read_dataset
from deas_vla.data.options import RewardSpec
from deas_vla.errors import UserError
from deas_vla.files import atomic_path, write_json
from deas_vla.improvement.best_of_n import require_fitting_horizon, require_same_encoder
from deas_vla.improvement.selection import CANDIDATE_NOISE
from deas_vla.policies.registry import load_policy
from deas_vla.report.plots import C, new_figure
from deas_vla.rollouts.collect import DATASET
from deas_vla.scorers.scorer import load_scorer
from deas_vla.training.stages import stage_report

FIGURE = "critique.png"


def critique(
    datasets: list[str],
    critic: Path,
    policy: Path | None = None,
    output: Path | None = None,
    *,
    candidates: int = 16,
    frames: int = 12,
    noise_scale: float = CANDIDATE_NOISE,
    seed: int = 0,
    films: int = 3,
) -> Critique:
    """Asks a critic about the episodes of LeRobot data sets that it was not trained on.

    Args:
        datasets: folders of data sets, or of stages of demonstrations or rollouts.
        critic: stage folder of the critic.
        policy: stage folder of a policy with the same encoder; None: the one that the critic was trained for.
        output: folder for critique.json, critique.png, critique.html and films; None: ``critique`` in the critic's.
        candidates, noise_scale: N of the policy's own chunks at a frame, as they would be chosen from.
        frames: most frames of an episode.
        films: of the first so many successes, and as many failures.

    Raises UserError if the parts do not fit together, or no episode is left.
    """
    report = stage_report(critic)
    if policy is None:
        policy = Path(report["sources"]["policy"])
    actor = load_policy(policy / "policy").eval()
    scorer = load_scorer(critic / "critic", actor.contract).eval()
    require_same_encoder(actor, scorer)
    require_fitting_horizon(actor, scorer.horizon)
    reward = RewardSpec(**report["settings"]["reward"])
    asked: list[Asked] = []
    for name in datasets:
        root = Path(name) / DATASET if (Path(name) / DATASET).is_dir() else Path(name)
        # Statistics may differ: those of one data set are not those that the policy was trained with.
        episodes = read_dataset(root, actor.contract.with_statistics(None), in_memory=0)[0]
        positions = {id(episode): position for position, episode in enumerate(episodes)}
        unseen = unseen_episodes(critic, root, episodes)
        for number, episode in enumerate(tqdm(unseen, desc=root.name, unit="episode", dynamic_ncols=True)):
            said = collect_evidence(
                actor, scorer, episode, reward, candidates=candidates, frames=frames,
                noise_scale=noise_scale, seed=seed, number=number,
            )  # fmt: skip
            asked.append(Asked(f"{Path(name).name} {positions[id(episode)]}", episode, said))
    if not asked:
        raise UserError("there is no episode to ask the critic about; give a data set with some")
    evidence = [each.evidence for each in asked]
    found = judge(evidence, scorer.score_range, seed)
    output = output or critic / "critique"
    write_json(output / "critique.json", {"critique": asdict(found), "evidence": to_json(evidence)})
    draw(found, evidence, output / FIGURE)
    write_page(found, first_of_each(asked, films), actor.contract.rate_hz, output, FIGURE)
    return found


def draw(found: Critique, evidence: list[Evidence], path: Path) -> None:
    """Four plots: AUC and values by progress, scores against returns, what the best of N adds."""
    figure, ((told, values), (returns, gains)) = new_figure(9.6, 6.6, 2, 2)
    percent = [100 * share for share in PROGRESS]
    low, middle, high = (np.array([getattr(each, name) for each in found.auc]) for name in ("low", "value", "high"))
    told.errorbar(percent, middle, [middle - low, high - middle], color=C["main"], marker="o", capsize=3)
    told.axhline(0.5, color=C["control"], linestyle="--")
    told.set(title="Success told from failure", xlabel="progress (%)", ylabel="AUC of V (95 %)", ylim=(0, 1.02))
    for success, name in ((True, "success"), (False, "failure")):
        color, label = C["good" if success else "bad"], name
        for each in (each for each in evidence if each.success == success):
            values.plot(100 * each.progress, each.value, color=color, alpha=0.35, linewidth=0.8, label=label)
            label = None
            returns.scatter(each.monte_carlo, each.score, color=color, s=6, alpha=0.5)
    values.set(title="Value over an episode", xlabel="progress (%)", ylabel="V")
    if values.get_legend_handles_labels()[0]:
        values.legend(frameon=False)
    returns.set(title="Score of what was played", xlabel="Monte-Carlo return", ylabel="score")
    gains.plot(list(found.gains), [100 * gain for gain in found.gains.values()], color=C["main"], marker="o")
    gains.set(title="Best of N above the mean candidate", xlabel="N", ylabel="% of the critic's range", xscale="log")
    gains.set_xticks(list(found.gains), [str(number) for number in found.gains])
    gains.minorticks_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120, facecolor="white")
