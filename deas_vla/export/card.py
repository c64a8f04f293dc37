"""The model card of a reranker, and what ``deas-vla inspect`` prints: the manifest in words."""

from deas_vla.data.contract import Column
from deas_vla.errors import as_user_error
from deas_vla.export.reranker import MANIFEST, contract_of

CARD = """---
library_name: deas_vla
pipeline_tag: robotics
tags: [robotics, vision-language-action, best-of-n, deas, lerobot]
---

# A reranked policy for {contract.embodiment}

A chunk policy and a critic, exported by deas_vla ([the method](https://arxiv.org/abs/2510.07730)). At every decision
the policy proposes {selection[num_candidates]} chunks of {policy[horizon]} actions, the critic scores them, and the
rule `{selection[rule]}` chooses one, of which the first {selection[execute_steps]} actions are played at
{contract.rate_hz:g} Hz.

## Use

```bash
deas-vla verify FOLDER     # files unchanged, parts belong together, golden inputs give the same scores and choices
deas-vla inspect FOLDER    # what is in it
```

LeRobot takes the folder for one of its own policies (type `deas`; the plug-in is in deas_vla's `plugins/`):

```bash
lerobot-eval --policy.path=FOLDER --policy.rate_hz={contract.rate_hz:g} --env.type=…
```

```python
from deas_vla import NoiseKey, Reranker

reranker = Reranker.load("FOLDER")
choice = reranker.choose(observation, [NoiseKey(seed=0, scene=0, sample=0, decision=0)])
choice.commands  # (1, {policy[horizon]}, {contract.action_dim}), in the units below
```

## What it is

Images are upright RGB, uint8; an instruction is words. A robot or data set with other names, another order, units, rate
or statistics is refused.

{facts}

## Results

{results}
"""


def card(manifest: dict, results: dict) -> str:
    """README.md of a reranker; `results` are method to outcome as in ``report.json``; empty if not evaluated."""
    lines = "\n".join(f"- {name}: {text}" for name, text in facts(manifest).items())
    parts = {"contract": contract_of(manifest), "policy": manifest["policy"], "selection": manifest["selection"]}
    return CARD.format(facts=lines, results=_results(results), **parts)


@as_user_error(f"{MANIFEST} is not whole; export the reranker again")
def facts(manifest: dict) -> dict[str, str]:
    """What a reranker is made of, a line a part."""
    contract, policy, scorer = contract_of(manifest), manifest["policy"], manifest["scorer"]
    selection, merged, (low, high) = manifest["selection"], manifest["merged"], scorer["score_range"]
    critic, features = f"{scorer['type']}, H = {scorer['horizon']}, ", "its own"
    if "critic.num_q" in scorer:
        critic += (
            f"{scorer['aggregation']} of {scorer['critic.num_q']} Q networks ({scorer['critic.head']}) and V, "
            f"γ₁ = {scorer['critic.reward_discount']:g}, γ₂ = {scorer['critic.bootstrap_discount']:g}, "
        )
    if "features.dim" in scorer:
        grid = f"a grid of {scorer['features.grid']} x {scorer['features.grid']} for each camera"
        features = f"{scorer['features.dim']} dimensions, {grid}, from {policy['feature_source']}"
    adapters = f"LoRA of {merged['layers']} layers, merged ({merged['changed']} changed weights)"
    parameters = ", ".join(f"{name} {value:g}" for name, value in selection["parameters"].items())
    encoder = policy["encoder_fingerprint"][:12]
    return {
        "policy": f"{policy['kind']}, chunks of {policy['horizon']} steps, encoder {encoder}",
        "policy from": _pairs(manifest["origin"]["policy"]),
        "adapters": adapters if merged["layers"] else "none",
        "critic": f"{critic}scores from {low:.4g} to {high:.4g}",
        "critic from": _pairs(manifest["origin"]["critic"]),
        "features": features,
        "selection": f"{selection['rule']} of {selection['num_candidates']}, {parameters}; "
        f"{selection['execute_steps']} actions of a chunk are played",
        "embodiment": f"{contract.embodiment}, {contract.rate_hz:g} Hz",
        "cameras": ", ".join(f"{c.name} {c.height}x{c.width}" for c in contract.cameras),
        "state": ", ".join(f"{c.name} [{c.unit}]" for c in contract.state),
        "action": ", ".join(f"{c.name} [{c.unit}] {c.kind}{_limits(c)}" for c in contract.action),
        "statistics": manifest["contract"]["statistics_sha256"],
        "golden inputs": str(manifest["golden"]["inputs"]),
        "exported with": _pairs(manifest["versions"] | {"platform": None}),
    }


def _limits(column: Column) -> str:
    low, high = ("" if limit is None else f"{limit:g}" for limit in (column.low, column.high))
    return f" from {low} to {high}" if low or high else ""


def _pairs(named: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in named.items() if value is not None) or "unknown"


def _results(results: dict) -> str:
    if not results:
        return "Not evaluated. Compare it with its own policy on unseen scenes: `recipes/evaluate.py`."
    lines = ["Of the run it was exported from, on the same scenes for all; in brackets 95 % intervals.", ""]
    lines += ["| method | success | episodes |", "|---|---|---|"]
    for name, played in results.items():
        rate, low, high = (100 * share for share in (played["success_rate"], *played["ci95"]))
        lines.append(f"| {name} | {rate:.0f} % [{low:.0f}, {high:.0f}] | {played['episodes']} |")
    return "\n".join(lines)
