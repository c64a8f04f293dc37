"""Trains and evaluates one agent on one task of OGBench, the benchmark of the paper's main table.

    accelerate launch --config_file accelerate_configs/cpu.yaml -m studies.ogbench.train \\
        --task=cube-single-play-singletask-task1-v0 --agent=deas

Needs the extra `ogbench`. States only: the same critic code as for robots with cameras, in minutes instead of hours.
Without official data files in --data, they are made by OGBench's scripted experts (3 minutes for 200,000 transitions
on two cores). 1 GB of memory a process. The behaviour policy is trained once for a data set, seed and chunk length
and shared by all agents. Each stage has a folder, is skipped when it is there, and goes on where it was interrupted.
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from deas_vla.config import to_json
from deas_vla.critic.critic import CriticConfig
from deas_vla.errors import UserError
from deas_vla.files import file_identity
from deas_vla.improvement.selection import RULES
from deas_vla.launch import run_recipe
from deas_vla.training.loop import TrainingConfig, make_accelerator, my_share, step_generator, train
from deas_vla.training.stages import run_stage
from studies.ogbench.agents.agent import Agent, Draws, TaskFacts
from studies.ogbench.agents.bc import BehaviourCloning, FilteredBcConfig, FlowConfig, best_options
from studies.ogbench.agents.deas import DeasConfig
from studies.ogbench.agents.dqc import DqcConfig
from studies.ogbench.agents.fql import FqlConfig, QcFqlConfig
from studies.ogbench.agents.iql import IqlConfig, NStepIqlConfig
from studies.ogbench.agents.one_step import DeasOneStepConfig
from studies.ogbench.agents.qc import QcConfig
from studies.ogbench.agents.registry import AGENTS
from studies.ogbench.data import read_npz
from studies.ogbench.env import OGBenchEnvs, OGBenchTask, relabel
from studies.ogbench.evaluate import evaluate_method
from studies.ogbench.player import Method, Player
from studies.ogbench.scripted_data import make_dataset
from studies.ogbench.selection import StudySelection
from studies.ogbench.transitions import OptionTable, Transitions

# Stream of the random numbers that choose the options of a batch, apart from those of the losses.
BATCH_STREAM = 1000
# Agents that are policies and nothing else, and those whose one chunk is already what their critic prefers.
NO_CRITIC, PLAY_ALONE = ("bc", "filtered_bc"), ("fql", "qc_fql", "deas_onestep")


def flow_training() -> TrainingConfig:
    return TrainingConfig(
        steps=8000, batch_size=256, learning_rate=1e-3, weight_decay=0.0, log_every=500, checkpoint_every=2000
    )


def agent_training() -> TrainingConfig:
    # As published, gradients are not clipped: the one-step policies' are large, and would take the critic's with them.
    return TrainingConfig(
        steps=3000, batch_size=256, learning_rate=5e-4, weight_decay=0.0, gradient_clip=1e6, log_every=250,
        checkpoint_every=1000,
    )  # fmt: skip


@dataclass
class PlayConfig:
    """The evaluation."""

    # episodes of each method; all agents of one seed play the same scenes with the same noise
    episodes: int = 50
    # ways to play, as RULE-N or RULE-N-execute-STEPS; empty: the default rule with 8 candidates, or the policy alone
    # for agents without a critic
    methods: list[str] = field(default_factory=list)
    # numbers of the selection rules
    selection: StudySelection = field(default_factory=StudySelection)
    # how many points of the learning curve are evaluated, besides the end; 0: none
    curve_points: int = 0
    # episodes of each point of the learning curve
    curve_episodes: int = 20


@dataclass
class OGBenchConfig:
    """Settings of studies/ogbench/train.py."""

    # OGBench's name of the task, for example cube-single-play-singletask-task1-v0
    task: str = "cube-single-play-singletask-task1-v0"
    # the agent: deas, deas_onestep, dqc, iql, nstep_iql, qc, qc_fql, fql, filtered_bc or bc
    agent: str = "deas"
    # name of the folder of this agent's run; empty: the agent's name
    variant: str = ""
    # folder of all runs
    output: str = "outputs/ogbench"
    # folder with NAME.npz as OGBench publishes it; empty: the file is made in OUTPUT/data
    data: str = ""
    # transitions to make where there is no file
    transitions: int = 200_000
    # seed of the data that are made
    data_seed: int = 0
    # chooses initial weights, the order of the data and the scenes of evaluation, 0 to 99
    seed: int = 0
    # H of bc; every other agent has its own
    horizon: int = 5
    # the behaviour policy
    flow: FlowConfig = field(default_factory=FlowConfig)
    # its training
    flow_training: TrainingConfig = field(default_factory=flow_training)
    # the training of the agent
    training: TrainingConfig = field(default_factory=agent_training)
    # DEAS with best-of-N
    deas: DeasConfig = field(default_factory=DeasConfig)
    # DEAS with the distilled one-step policy
    deas_onestep: DeasOneStepConfig = field(default_factory=DeasOneStepConfig)
    # decoupled Q-chunking on the DEAS critic
    dqc: DqcConfig = field(default_factory=DqcConfig)
    # implicit Q-learning, H = 1
    iql: IqlConfig = field(default_factory=IqlConfig)
    # the same with n-step returns
    nstep_iql: NStepIqlConfig = field(default_factory=NStepIqlConfig)
    # Q-chunking with best-of-N
    qc: QcConfig = field(default_factory=QcConfig)
    # Q-chunking with the distilled one-step policy
    qc_fql: QcFqlConfig = field(default_factory=QcFqlConfig)
    # flow Q-learning, H = 1
    fql: FqlConfig = field(default_factory=FqlConfig)
    # filtered behaviour cloning
    filtered_bc: FilteredBcConfig = field(default_factory=FilteredBcConfig)
    # the evaluation
    play: PlayConfig = field(default_factory=PlayConfig)

    def __post_init__(self):
        for name in self.play.methods if self.agent in NO_CRITIC else []:
            if RULES[Method.parse(name).rule].needs_scorer:
                raise UserError(f"--play.methods={name}: {self.agent} has no critic to choose by; leave it at first-1")


def source_of(file: Path, seed: int) -> dict:
    """What everything that is trained on a data set depends on: its name, its content, and the seed."""
    return {"data": file.name, "data_identity": file_identity(file), "seed": seed}


def ogbench(accelerator: Accelerator, config: OGBenchConfig) -> Path:
    """Data, behaviour policy, agent, evaluation; returns the folder of the agent's run."""
    task = OGBenchTask.parse(config.task)
    if config.agent not in (*AGENTS, "bc", "filtered_bc"):
        raise UserError(f"agent {config.agent!r} is unknown; choose {', '.join([*AGENTS, 'filtered_bc', 'bc'])}")
    file = data_file(accelerator, config, task)
    transitions = load(task, file)
    mean, scale = transitions.statistics()
    own = None if config.agent == "bc" else getattr(config, config.agent)
    facts = task_facts(task, transitions, getattr(own, "critic", None))
    runs = Path(config.output) / task.dataset.removesuffix("-v0") / f"seed-{config.seed}"
    folder = runs / f"task{task.number}" / (config.variant or config.agent)
    source = source_of(file, config.seed)

    agent: Agent
    if config.agent == "filtered_bc":
        agent = BehaviourCloning(config.flow, own.horizon, facts)
    elif config.agent == "bc":
        agent = behaviour(accelerator, config, config.horizon, facts, transitions, runs, source)
    else:
        clone = behaviour(accelerator, config, own.critic.horizon, facts, transitions, runs, source)
        torch.manual_seed(config.seed)
        agent = AGENTS[config.agent][1](own, facts, clone.behaviour)

    if config.agent != "bc":
        torch.manual_seed(config.seed)

        def work(path: Path) -> None:
            table = option_table(agent, transitions, mean, scale)
            options = None
            if config.agent == "filtered_bc":
                returns = transitions.returns_to_go(horizon=1, reward_discount=1.0, bootstrap_discount=own.discount)
                options = best_options(returns[table.start], own.share)
            fit(accelerator, agent, table, options, config.training, path, config)

        settings = source | {"task": config.task, "agent": config.agent, "flow": to_json(config.flow)}
        settings |= {config.agent: to_json(own), "training": to_json(config.training)}
        settings |= {"curve_points": config.play.curve_points}
        run_stage(accelerator, folder, settings, {}, work, everyone=True)
        agent.load(folder / "agent")
    if accelerator.is_main_process:
        evaluate(config, task, agent.cpu(), folder, mean, scale, facts)
    accelerator.wait_for_everyone()
    return folder


def data_file(accelerator: Accelerator, config: OGBenchConfig, task: OGBenchTask) -> Path:
    """The data set's file: the user's, or one that is made."""
    if config.data:
        return Path(config.data) / f"{task.dataset}.npz"
    folder = Path(config.output) / "data"
    if accelerator.is_main_process:
        make_dataset(task.dataset, config.transitions, config.data_seed, folder, workers=2)
    accelerator.wait_for_everyone()
    return folder / f"{task.dataset}.npz"


def task_facts(task: OGBenchTask, transitions: Transitions, critic: CriticConfig | None) -> TaskFacts:
    """What an agent with this critic must know; the lowest return is that of its own options and discounts."""
    lowest = 0.0
    if critic is not None:
        returns = transitions.returns_to_go(
            horizon=critic.backup, reward_discount=critic.reward_discount, bootstrap_discount=critic.bootstrap_discount
        )
        lowest = float(returns.min())
    return TaskFacts(
        observation_dim=transitions.observations.shape[1],
        action_dim=transitions.actions.shape[1],
        reward_min=float(-task.num_subgoals),
        lowest_return=lowest,
    )


def load(task: OGBenchTask, file: Path) -> Transitions:
    """The data set with the rewards of one task."""
    data = read_npz(file)
    rewards, success = relabel(task, data)
    arrays = (data.observations, data.actions, rewards, success, data.terminals)
    return Transitions(*(torch.from_numpy(array) for array in arrays))


def option_table(agent: Agent, transitions: Transitions, mean: Tensor, scale: Tensor) -> OptionTable:
    return OptionTable(
        transitions, mean, scale,
        horizon=agent.horizon, backup=agent.backup,
        reward_discount=agent.reward_discount, bootstrap_discount=agent.bootstrap_discount,
    )  # fmt: skip


def behaviour(
    accelerator: Accelerator,
    config: OGBenchConfig,
    horizon: int,
    facts: TaskFacts,
    transitions: Transitions,
    runs: Path,
    source: dict,
) -> BehaviourCloning:
    """The behaviour policy of this data set, seed and chunk length: the same for all tasks and agents."""
    torch.manual_seed(config.seed)
    clone = BehaviourCloning(config.flow, horizon, facts)

    def work(path: Path) -> None:
        table = option_table(clone, transitions, *transitions.statistics())
        fit(accelerator, clone, table, None, config.flow_training, path, config)

    settings = source | {"flow": to_json(config.flow), "training": to_json(config.flow_training)}
    folder = runs / f"behaviour-H{horizon}"
    run_stage(accelerator, folder, settings, {}, work, everyone=True)
    return clone.load(folder / "agent").requires_grad_(False).to(accelerator.device)


def fit(
    accelerator: Accelerator,
    agent: Agent,
    table: OptionTable,
    options: Tensor | None,
    training: TrainingConfig,
    folder: Path,
    config: OGBenchConfig,
) -> None:
    """Trains an agent on options drawn uniformly (from those given, or all) and writes its weights."""
    agent.to(accelerator.device)
    share = my_share(accelerator, training.batch_size)
    count = len(table) if options is None else len(options)

    def batch_at(step: int) -> tuple:
        drawn = torch.randint(count, (training.batch_size,), generator=step_generator(config.seed, step, BATCH_STREAM))
        rows = drawn[share] if options is None else options[drawn[share]]
        draws = Draws(config.seed, step, training.batch_size, share)
        return table.batch(rows).to(accelerator.device), draws

    points = config.play.curve_points
    curve = {training.steps * k // (points + 1) for k in range(1, points + 1)}

    def milestone(step: int) -> None:
        if step in curve and accelerator.is_main_process:
            agent.save(folder / "curve" / str(step), {})

    train(
        accelerator, agent, batch_at, training, folder,
        name=folder.name, seed=config.seed, after_step=type(agent).after_step, milestone=milestone,
    )  # fmt: skip
    if accelerator.is_main_process:
        agent.save(folder / "agent", {"task": config.task, "agent": config.agent})


def evaluate(
    config: OGBenchConfig, task: OGBenchTask, agent: Agent, folder: Path, mean: Tensor, scale: Tensor, facts: TaskFacts
) -> None:
    """Plays every method, and the points of the learning curve; what was played before is kept."""
    default = "first-1" if config.agent in (*NO_CRITIC, *PLAY_ALONE) else f"{config.play.selection.rule}-8"
    methods = config.play.methods or [default]
    envs = OGBenchEnvs(task)

    def play(path: Path, name: str, episodes: int) -> None:
        method = Method.parse(name)
        player = Player(agent, method, config.play.selection, mean, scale, facts.action_dim)
        evaluate_method(
            envs, player, path, episodes=episodes, seed=config.seed, description=player.description,
            backup=agent.backup, reward_discount=agent.reward_discount,
            bootstrap_discount=agent.bootstrap_discount,
        )  # fmt: skip

    for name in methods:
        play(folder / "evaluation" / f"{name}.json", name, config.play.episodes)
    for path in sorted((folder / "curve").glob("*/")) if (folder / "curve").is_dir() else []:
        agent.load(path)
        play(folder / "evaluation" / "curve" / f"{path.name}.json", methods[0], config.play.curve_episodes)


def main(config: OGBenchConfig) -> None:
    ogbench(make_accelerator(), config)


if __name__ == "__main__":
    run_recipe(main, OGBenchConfig)
