"""How much memory and time does an export take, against the weights of its policy?

    python benchmarks/export_memory.py                    # three policies of 0.4 to 1 GB that are made here
    python benchmarks/export_memory.py --kinds=diffusion  # one of them
    python benchmarks/export_memory.py --json             # and one JSON object as the last line

A run of stages is written with random weights: a policy, a critic, rollouts. A process of its own exports a run with a
tiny policy of the same kind, so that all packages are imported, and then the large one: ``memory_ratio`` is by how much
its resident memory rose at most, as the operating system counts it, over the bytes of the weights. CPU seconds are
of the second export, user and system. The kinds: a LeRobot diffusion policy with its default U-Net, a SmolVLA of 12
layers of width 768, and a small_vla whose backbone has LoRA adapters, which are merged.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from data_example import example_contract
from lerobot_example import CONTRACT, SENTENCES, SIZE, diffusion, observations, smolvla
from policy_example import shake
from reranker_example import small_scorer

from deas_vla.data.episodes import Episode
from deas_vla.data.lerobot.writer import write_dataset
from deas_vla.files import write_json
from deas_vla.policies.chunk_policy import ChunkPolicy
from deas_vla.policies.small_vla.configuration import EmbeddedBackboneConfig, SmallVLAConfig
from deas_vla.policies.small_vla.modeling import SmallVLAPolicy
from studies.metaworld.small_smolvlm import write_small_smolvlm

ROOT = Path(__file__).resolve().parents[1]
PROBE = """
import json, resource, sys
import torch
torch.set_num_threads(int(sys.argv[3]))
from deas_vla.export.export import ExportConfig, export_run

def kib(name):
    lines = open("/proc/self/status").read().split("\\n")
    return int(next(line for line in lines if line.startswith(name)).split()[1])

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

export_run(ExportConfig(run=sys.argv[1], output=sys.argv[1] + "/reranker"))
open("/proc/self/clear_refs", "w").write("5")  # the highest resident memory is counted anew
before, began = kib("VmRSS"), cpu()
export_run(ExportConfig(run=sys.argv[2], output=sys.argv[2] + "/reranker"))
print(json.dumps({"mib": (kib("VmHWM") - before) / 1024, "cpu_s": cpu() - began}))
"""


def make_diffusion(folder: Path, large: bool) -> ChunkPolicy:
    return diffusion(down_dims=(512, 1024, 2048) if large else (16, 32), num_inference_steps=10)


def make_smolvla(folder: Path, large: bool) -> ChunkPolicy:
    sizes = {"width": 768, "layers": 12} if large else {}
    backbone = write_small_smolvlm(folder / "smolvlm", SENTENCES, SIZE, patch=16, **sizes)
    return smolvla(backbone, num_vlm_layers=sizes.get("layers", 2))


def make_lora(folder: Path, large: bool) -> ChunkPolicy:
    width, layers = (1024, 6) if large else (64, 1)
    embedded = EmbeddedBackboneConfig(vision_width=width, vision_layers=layers, text_width=width, text_layers=layers)
    contract = replace(CONTRACT, statistics=example_contract().statistics)
    return shake(SmallVLAPolicy(SmallVLAConfig(embedded=embedded, tune="lora"), contract, SENTENCES)).eval()


KINDS: dict[str, Callable[[Path, bool], ChunkPolicy]] = {
    "diffusion": make_diffusion,
    "smolvla": make_smolvla,
    "small_vla_lora": make_lora,
}


def write_run(run: Path, policy: ChunkPolicy) -> None:
    """The stages that an export reads."""
    for stage in ("policy", "critic", "rollouts"):
        sources = {"rollouts": str(run / "rollouts")} if stage == "critic" else {}
        write_json(run / stage / "stage.json", {"fingerprint": stage, "settings": {}, "sources": sources})
    policy.save(run / "policy" / "policy")
    small_scorer(policy, frames=observations(12, seed=5), hidden_dim=64).save(run / "critic" / "critic")
    rng, contract = np.random.default_rng(0), policy.contract
    episodes = [
        Episode(
            instruction=SENTENCES[0],
            source="rollout",
            scene=scene,
            states=rng.normal(size=(9, contract.state_dim)).astype(np.float32),
            actions=np.zeros((8, contract.action_dim), np.float32),
            rewards=np.zeros(8, np.float32),
            success=np.zeros(8, bool),
            truncated=True,
            frame_steps=np.array([0, 4, 8]),
            images={
                camera.name: rng.integers(0, 256, (3, camera.height, camera.width, 3), dtype=np.uint8)
                for camera in contract.cameras
            },
        )
        for scene in range(4)
    ]
    write_dataset(run / "rollouts" / "dataset", episodes, contract, "local/rollouts")


def measure(kind: str, folder: Path, threads: int) -> dict[str, float]:
    for size in ("tiny", "large"):
        torch.manual_seed(0)
        policy = KINDS[kind](folder / size, size == "large")
        write_run(folder / size / "run", policy)
        weights = sum(tensor.nbytes for tensor in policy.state_dict().values()) / 2**20
        del policy
    command = [sys.executable, "-c", PROBE, str(folder / "tiny" / "run"), str(folder / "large" / "run"), str(threads)]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"weights_mib": weights, "memory_ratio": found["mib"] / weights}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join(KINDS), help="which policies (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    arguments = parser.parse_args()
    results = {}
    print("policy               weights      memory    ratio   CPU seconds")
    for kind in arguments.kinds.split(","):
        with tempfile.TemporaryDirectory() as folder:
            row = results[kind] = measure(kind, Path(folder), arguments.threads)
        sizes = f"{row['weights_mib']:7.0f} MiB {row['mib']:7.0f} MiB {row['memory_ratio']:7.2f}x"
        print(f"{kind:16s} {sizes} {row['cpu_s']:11.1f} s", flush=True)
    if arguments.json:
        print(json.dumps(results | {"threads": arguments.threads, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
