"""The model card of a reranker, and what ``deas-vla inspect`` prints: the manifest in words."""

from deas_vla.data.contract import Column
from deas_vla.errors import as_user_error
from deas_vla.export.reranker import MANIFEST, contract_of

CARD = """---
library_name: deas_vla
pipeline_tag: robotics
tags: [robotics, vision-language-action, best-of-n, deas, lerobot]
---

# A reranked policy for {embodiment}

A chunk policy and a critic, exported by deas_vla ([the method](https://arxiv.org/abs/2510.07730)). At every decision
the policy proposes {count} chunks of {horizon} actions, the critic scores them, and the rule `{rule}`
chooses one, of which the first {steps} actions are played at {rate:g} Hz.

## Use

```bash
deas-vla verify FOLDER     # files unchanged, parts belong together, golden inputs give the same scores and choices
deas-vla inspect FOLDER    # what is in it
```

LeRobot takes the folder for one of its own policies (type `deas`; the plug-in is in deas_vla's `plugins/`):

```bash
lerobot-eval --policy.path=FOLDER --policy.rate_hz={rate:g} --env.type=…
```

```python
from deas_vla.improvement.best_of_n import NoiseKey
from deas_vla.export.reranker import Reranker

reranker = Reranker.load("FOLDER")
choice = reranker.choose(observation, [NoiseKey(seed=0, scene=0, sample=0, decision=0)])
choice.commands  # (1, {horizon}, {action_dim}), in the units below
```

## What it is

Images are upright RGB, uint8; an instruction is words. A robot or data set with other names, another order, units, rate
or statistics is refused.

{facts}

## Results

{results}
"""


def card(manifest: dict, results: dict) -> str:
    """README.md of a reranker.

    Args:
        manifest: its manifest.
        results: method to outcome, as in ``report.json``; empty if it was not evaluated.
    """
    contract, selection = contract_of(manifest), manifest["selection"]
    return CARD.format(
        embodiment=contract.embodiment,
        count=selection["num_candidates"],
        horizon=manifest["policy"]["horizon"],
        rule=selection["rule"],
        steps=selection["execute_steps"],
        rate=contract.rate_hz,
        action_dim=contract.action_dim,
        facts="\n".join(f"- {name}: {text}" for name, text in facts(manifest).items()),
        results=_results(results),
    )


@as_user_error(f"{MANIFEST} is not whole; export the reranker again")
def facts(manifest: dict) -> dict[str, str]:
    """What a reranker is made of, a line a part.

    Raises:
        UserError: if something is missing in the manifest.
    """
    contract = contract_of(manifest)
    policy, scorer, selection = manifest["policy"], manifest["scorer"], manifest["selection"]
    merged, (low, high) = manifest["merged"], scorer["score_range"]
    adapters = f"LoRA of {merged['layers']} layers, merged ({merged['changed']} changed weights)"
    versions = [f"{name} {version}" for name, version in manifest["versions"].items() if name != "platform"]
    parameters = ", ".join(f"{name} {value:g}" for name, value in selection["parameters"].items())
    critic = f"{scorer['type']}, H = {scorer['horizon']}, "
    if "critic.num_q" in scorer:
        critic += (
            f"{scorer['aggregation']} of {scorer['critic.num_q']} Q networks ({scorer['critic.head']}) and V, "
            f"γ₁ = {scorer['critic.reward_discount']:g}, γ₂ = {scorer['critic.bootstrap_discount']:g}, "
        )
    features = "its own"
    if "features.dim" in scorer:
        grid = f"a grid of {scorer['features.grid']} x {scorer['features.grid']} for each camera"
        features = f"{scorer['features.dim']} dimensions, {grid}, from {policy['feature_source']}"
    return {
        "policy": f"{policy['kind']}, chunks of {policy['horizon']} steps, "
        f"encoder {policy['encoder_fingerprint'][:12]}",
        "policy from": _origin(manifest["origin"]["policy"]),
        "adapters": adapters if merged["layers"] else "none",
        "critic": f"{critic}scores from {low:.4g} to {high:.4g}",
        "critic from": _origin(manifest["origin"]["critic"]),
        "features": features,
        "selection": f"{selection['rule']} of {selection['num_candidates']}, {parameters}; "
        f"{selection['execute_steps']} actions of a chunk are played",
        "embodiment": f"{contract.embodiment}, {contract.rate_hz:g} Hz",
        "cameras": ", ".join(f"{c.name} {c.height}x{c.width}" for c in contract.cameras),
        "state": ", ".join(f"{c.name} [{c.unit}]" for c in contract.state),
        "action": ", ".join(f"{c.name} [{c.unit}] {c.kind}{_limits(c)}" for c in contract.action),
        "statistics": manifest["contract"]["statistics_sha256"],
        "golden inputs": str(manifest["golden"]["inputs"]),
        "exported with": ", ".join(versions),
    }


def _limits(column: Column) -> str:
    low, high = ("" if limit is None else f"{limit:g}" for limit in (column.low, column.high))
    return f" from {low} to {high}" if low or high else ""


def _origin(origin: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in origin.items() if value is not None) or "unknown"


def _results(results: dict) -> str:
    if not results:
        return "Not evaluated. Compare it with its own policy on unseen scenes: `recipes/evaluate.py`."
    rows = []
    for name, played in results.items():
        low, high = played["ci95"]
        success = f"{100 * played['success_rate']:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
        rows.append(f"| {name} | {success} | {played['episodes']} |")
    title = "Of the run it was exported from, on the same scenes for all; in brackets 95 % intervals."
    return "\n".join([title, "", "| method | success | episodes |", "|---|---|---|", *rows])
