"""DeasPolicy: an exported reranker wherever LeRobot takes a policy: ``lerobot-eval --policy.path=outputs/reranker``.

Commands come out in the units of the contract. Decisions are made by the same call as everywhere else in deas_vla.
"""

from collections import deque
from pathlib import Path
from typing import NoReturn

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from deas_vla.data.contract import Contract
from deas_vla.data.observation import Observation, episode_ids
from deas_vla.errors import UserError, as_user_error
from deas_vla.export.export import export_reranker
from deas_vla.export.lerobot_files import require_fits
from deas_vla.export.lerobot_plugin.configuration_deas import NO_TRAINING, DeasConfig
from deas_vla.export.reranker import Reranker
from deas_vla.export.verify import load_checked
from deas_vla.improvement.best_of_n import BestOfN, NoiseKey, Prefix, require_scored

# What a look-up on the hub may be told.
HUB_SETTINGS = ("revision", "cache_dir", "force_download", "token", "local_files_only")


class DeasPolicy(PreTrainedPolicy):
    """A reranker that plays the first `n_action_steps` of every chunk it chooses.

    The noise of an episode depends on the configured seed, on the episode's first observation and on the number of the
    decision: `reset` begins anew, and an episode that begins alike is played alike, whatever else is in its batch. The
    choices of `config` (candidates, rule, steps, seed) count, not those of the export; its golden inputs are those that
    `save_pretrained` writes again.
    """

    config_class = DeasConfig
    name = "deas"

    def __init__(
        self,
        config: DeasConfig,
        reranker: Reranker | None = None,
        golden: Observation | None = None,
        dataset_meta=None,
        **_,
    ) -> None:
        super().__init__(config)
        if reranker is None:
            raise UserError("a deas policy is read from a folder of deas-vla export: --policy.path=FOLDER")
        require_fits(config, reranker.manifest, dataset_meta)
        # The critic belongs to the encoder as it is: neither is ever trained here.
        self.policy, self.scorer = reranker.policy, reranker.decider.scorer.requires_grad_(False)
        self.policy.freeze_encoder()
        rule = config.selection.rule
        require_scored(config.n_action_steps, self.scorer.horizon, rule)
        decider = BestOfN(self.policy, config.num_candidates, rule, self.scorer, config.selection)
        self.reranker, self.golden = Reranker(decider, reranker.manifest), golden
        self.reset()

    def reset(self) -> None:
        """Forgets the chunk that is being played, and begins the noise of new episodes."""
        self._queue: deque[Tensor] = deque()
        self._episodes: list[int] | None = None
        self._last_chunk: Tensor | None = None
        self._decisions = 0

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor]) -> Tensor:
        """(B, A) the next command; every `n_action_steps` calls the policy decides anew."""
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch)[:, : self.config.n_action_steps].unbind(1))
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(
        self,
        batch: dict[str, Tensor],
        inference_delay: int | None = None,
        prev_chunk_left_over: Tensor | None = None,
        execution_horizon: int | None = None,
    ) -> Tensor:
        """(B, H, A) commands: decides once.

        In real-time chunking `inference_delay` commands are played before the chunk is there, and
        `prev_chunk_left_over` is (B, P, A) or (P, A) the rest of the last chunk from the command that is played next
        on, of which the first `execution_horizon` count (None: all).
        """
        observation = observation_of(batch, self.policy.image_keys(), self.policy.contract)
        if self._episodes is None:
            self._episodes = episode_ids(observation)
        if len(observation) != len(self._episodes):
            counts = f"{len(observation)} observations after {len(self._episodes)}"
            raise UserError(f"{counts}: call reset() before other episodes")
        keys = [NoiseKey(self.config.seed, scene, 0, self._decisions) for scene in self._episodes]
        self._decisions += 1
        prefix = None
        if (rest := prev_chunk_left_over) is not None:
            rest = (rest if rest.dim() == 3 else rest[None])[:, :execution_horizon]
            if real := commands_in(rest, self._last_chunk):
                prefix = Prefix(rest[:, :real], inference_delay or 0)
        self._last_chunk = self.reranker.choose(observation, keys, prefix).commands
        return self._last_chunk

    def supports_rtc(self) -> bool:
        return True

    def forward(self, *_) -> NoReturn:
        """Refused, with a UserError: what is exported is final."""
        raise UserError(NO_TRAINING)

    get_optim_params = forward

    @classmethod
    def from_pretrained(
        cls, pretrained_name_or_path: str | Path, *, config: PreTrainedConfig | None = None, **settings
    ) -> "DeasPolicy":
        """Reads an exported reranker whose files are unchanged, from a folder or a repository on the hub.

        `config`: with other choices than the export's. `settings` are those of LeRobot's readers: what a hub needs;
        ``dataset_meta`` of a data set that the policy must fit.
        """
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            asked = {key: settings[key] for key in HUB_SETTINGS if settings.get(key) is not None}
            with as_user_error(f"{folder} is no folder, and no repository that can be read"):
                folder = Path(snapshot_download(str(folder), **asked))
        _, reranker, golden = load_checked(folder)
        config = config or PreTrainedConfig.from_pretrained(folder)
        policy = cls(config, reranker, golden.observation, settings.get("dataset_meta"))
        return policy.to(config.device).eval()

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Exports what this is now, its choices included; into an empty folder only."""
        if state_dict is not None:
            raise UserError("a deas policy is exported from whole weights; shards cannot be saved")
        if any(save_directory.iterdir()):
            raise UserError(f"{save_directory} holds files already; save into a new folder, or delete it")
        # LeRobot has just made it, empty: an export makes its folder, whole or not at all.
        save_directory.rmdir()
        export_reranker(
            save_directory,
            policy=self.policy,
            scorer=self.scorer,
            observation=self.golden,
            num_candidates=self.config.num_candidates,
            selection=self.config.selection,
            execute_steps=self.config.n_action_steps,
        )


def observation_of(batch: dict, image_keys: dict[str, str], contract: Contract) -> Observation:
    """What a policy sees in a batch of LeRobot's, behind the preprocessor; `image_keys`: camera to its key in it.

    The batch has (B, 3, h, w) images, float32 in [0, 1] or uint8; (B, S) states in raw units; B instructions as
    ``task``. Raises UserError if one is missing, or an image has another type or range; sizes are compared later.
    """
    images = {}
    for camera in contract.cameras:
        key = image_keys[camera.name]
        if key not in batch:
            there = ", ".join(name for name in batch if name.startswith("observation.image")) or "no images"
            fix = f'name the right one, --rename_map=\'{{"KEY": "{key}"}}\''
            raise UserError(f"the observation lacks {key}, the policy's camera {camera.name}; it has {there}: {fix}")
        images[camera.name] = _pixels(batch[key], key)
    for key in ("observation.state", "task"):
        if key not in batch:
            raise UserError(f"the observation lacks {key}; the policy reads state and instruction")
    state, task = batch["observation.state"].float(), batch["task"]
    instructions = [task] if isinstance(task, str) else list(task)
    if len(instructions) != len(state):
        raise UserError(f"task holds {len(instructions)} instructions for {len(state)} observations; give one to each")
    return Observation(images, state, instructions)


def _pixels(image: Tensor, key: str) -> Tensor:
    """(B, 3, h, w) LeRobot's image to (B, h, w, 3) uint8: exactly the pixels that the camera gave."""
    # LeRobot has divided them by 255. An observation is uint8, as it is recorded: its hash names the episode's noise.
    if image.dtype != torch.uint8:
        if not image.is_floating_point() or not (image.amin() >= 0 and image.amax() <= 1):
            raise UserError(f"{key} is not an image from 0 to 1; nothing may normalise it before the policy")
        image = (image * 255).round().to(torch.uint8)
    return image.permute(0, 2, 3, 1).contiguous()


def commands_in(rest: Tensor, last_chunk: Tensor | None) -> int:
    """How many steps of a left-over are commands: LeRobot fills it up with zeros, and does not mark from where on.

    A zero is a command too: a delta-controlled arm that holds still is sent nothing else. So the left-over, (B, P, A),
    is looked for in the chunk that was decided last, (B, H, A), whose end it is; else zeros at its end are filling.
    """
    if last_chunk is not None and len(last_chunk) == len(rest):
        last_chunk = last_chunk.to(rest)
        for start in range(last_chunk.shape[1]):
            end = last_chunk[:, start : start + rest.shape[1]]
            real = end.shape[1]
            if torch.equal(rest[:, :real], end) and not rest[:, real:].any():
                return real
    return int(rest.ne(0).any(2).any(0).nonzero().amax()) + 1 if rest.any() else 0
