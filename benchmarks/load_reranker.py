"""How long does it take until an exported critic has scored its first chunks?

    python benchmarks/load_reranker.py            # a table
    python benchmarks/load_reranker.py --json     # and one JSON object as the last line

Each measurement is a process of its own that imports PyTorch, then loads the critic of a reranker and scores all stored
golden inputs, which needs no policy and no package but torch and safetensors. ``seconds_after_torch`` is the median of
the second part, imports of this project included; the first part is what PyTorch alone takes.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from best_of_n import decision_makers, random_observation

from deas_vla.data.observation import Observation
from deas_vla.export.export import export_reranker

PROBE = """
import sys, time
began = time.perf_counter()
import torch
torch.set_num_threads({threads})
imported = time.perf_counter()
from deas_vla.export.verify import GOLDEN, Golden
from deas_vla.scorers.scorer import load_scorer
scorer = load_scorer({folder!r} + "/critic")
golden = Golden.load({folder!r} + "/" + GOLDEN)
apart = (golden.rescored(scorer) - golden.scores).abs().max().item()
scored = time.perf_counter()
assert apart < 1e-3, apart
print(imported - began, scored - imported)
"""


def export_demo(folder: Path, seed: int) -> None:
    """A reranker of the demo's sizes with random weights: 8 golden inputs, 8 candidates."""
    maker = decision_makers(seed)["best_of_8"]
    generator = torch.Generator().manual_seed(seed)
    frames = [random_observation(generator) for _ in range(8)]
    observation = Observation(
        {name: torch.cat([frame.images[name] for frame in frames]) for name in frames[0].images},
        torch.cat([frame.state for frame in frames]),
        [frame.instruction[0] for frame in frames],
    )
    export_reranker(folder, policy=maker.policy, scorer=maker.scorer, observation=observation)


def measure(folder: Path, repeats: int, threads: int) -> list[tuple[float, float]]:
    """Seconds of importing PyTorch, and of everything after it, for each fresh process."""
    probe = PROBE.format(folder=str(folder), threads=threads)
    found = []
    for _ in range(repeats + 1):
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
        before, after = map(float, done.stdout.split())
        found.append((before, after))
    return found[1:]  # the first one reads files that the others find in memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reranker", help="folder of a reranker; without it one of the demo's sizes is made")
    parser.add_argument("--repeats", type=int, default=5, help="fresh processes (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.reranker or Path(temporary) / "reranker").resolve()
        if not arguments.reranker:
            export_demo(folder, seed=0)
        found = measure(folder, arguments.repeats, arguments.threads)
    before, after = (statistics.median(column) for column in zip(*found, strict=True))
    print(f"fresh processes, {arguments.threads} CPU thread(s), median of {arguments.repeats}")
    print(f"importing PyTorch                       {before:6.2f} s")
    print(f"loading the critic, scoring its goldens {after:6.2f} s")
    if arguments.json:
        result = {"seconds_after_torch": after, "seconds_of_torch": before}
        settings = {"repeats": arguments.repeats, "threads": arguments.threads, "torch": torch.__version__}
        print(json.dumps(result | settings))


if __name__ == "__main__":
    main()
