"""The command ``deas-vla``."""

import argparse
import json
import sys
from pathlib import Path

from deas_vla.config import expand_home
from deas_vla.launch import exit_status

# Facts about a data set that `declare` asks for, and what they are.
FACTS = {
    "units": ("UNIT | COLUMN=UNIT,…", "of states and actions, for example deg, or 'gripper.pos=range_0_100,*.pos=deg'"),
    "limits": ("COLUMN=LOW:HIGH,…", "of actions"),
    "binary": ("COLUMN,…", "actions with two values only"),
    "rate": ("HZ", "control steps a second, where info.json has none or a wrong one (fps)"),
    "robot": ("NAME", "what moved, for example so101_follower, where info.json does not say (robot_type)"),
    "cameras": ("NAME=OTHER,…", "other names for cameras, those of the data sets that it is used with"),
    "source": ("demonstration|rollout", "what the episodes are"),
    "success": ("column|done|reward|always|never", "what counts as success, whatever columns there are"),
    "reward": ("column|success", "what the reward is: next.reward, or 1 for the step that succeeds"),
}


def doctor(arguments: argparse.Namespace) -> int:
    from deas_vla.doctor import diagnose, report

    diagnosis = diagnose()
    print(json.dumps(diagnosis) if arguments.json else report(diagnosis))
    return 0 if diagnosis["ready"] else 1


def audit(arguments: argparse.Namespace) -> int:
    from deas_vla.data.audit.audit import audit, report_text
    from deas_vla.data.labels import LabelRules

    report = audit(arguments.datasets, arguments.against, LabelRules(arguments.success, arguments.reward))
    print(json.dumps(report.to_json()) if arguments.json else report_text(report))
    return 0 if report.fit else 1


def declare(arguments: argparse.Namespace) -> None:
    from deas_vla.data.lerobot import SIDECAR
    from deas_vla.data.lerobot.declare import declare_facts
    from deas_vla.errors import UserError

    given = {name: value for name in FACTS if (value := getattr(arguments, name)) is not None}
    if not given:
        raise UserError(f"say what the data set does not: {', '.join(f'--{name}' for name in FACTS)}; see --help")
    declare_facts(arguments.dataset, given)
    print(f"{arguments.dataset}/{SIDECAR} is written; check the data with: deas-vla audit {arguments.dataset}")


def label(arguments: argparse.Namespace) -> None:
    from deas_vla.labelling.labelling import Labelling

    labelling = Labelling(arguments.dataset)
    if arguments.page:
        from deas_vla.labelling.page import label_on_page

        label_on_page(labelling, arguments.port)
    else:
        from deas_vla.labelling.terminal import label_in_terminal

        label_in_terminal(labelling)
    print(labelling.summary())


def critique(arguments: argparse.Namespace) -> None:
    from deas_vla.critique.critique import critique
    from deas_vla.critique.verdict import text_of

    policy, output = (Path(path) if path else None for path in (arguments.policy, arguments.output))
    numbers = {name: getattr(arguments, name) for name in ("candidates", "frames", "seed", "films")}
    critic = Path(arguments.critic)
    print(text_of(critique(arguments.datasets, critic, policy, output, **numbers)))
    print(f"with films: {output or critic / 'critique'}/critique.html")


def export(arguments: argparse.Namespace) -> None:
    from deas_vla.config import parse
    from deas_vla.export.export import ExportConfig, export_run, upload

    config = parse(ExportConfig, arguments.settings, prog="deas-vla export")
    export_run(config)
    print(f"{config.output} is written; check it with: deas-vla verify {config.output}")
    if config.push_to_hub:
        print(f"uploaded to {upload(Path(config.output), config.push_to_hub, config.private)}")


def verify(arguments: argparse.Namespace) -> None:
    from deas_vla.export.verify import verify

    print(verify(arguments.folder))


def inspect(arguments: argparse.Namespace) -> None:
    from deas_vla.export.card import facts
    from deas_vla.export.reranker import read_manifest

    manifest = read_manifest(arguments.folder)
    lines = [json.dumps(manifest)] if arguments.json else [f"{k:14s} {text}" for k, text in facts(manifest).items()]
    print("\n".join(lines))


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="deas-vla", description="Tools of deas_vla; the main jobs are recipes/.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(run, text: str, **options):
        command = commands.add_parser(run.__name__, help=text, **options)
        command.set_defaults(run=run)
        return command.add_argument

    doctor_flag = add(doctor, "what is installed, what is missing, and how to get it; fails if the demo cannot run")
    fit = "whether LeRobot data sets (v2.0, v2.1, v3) are fit for training and fit together; fails if not"
    audit_flag = add(audit, fit)
    audit_flag("datasets", nargs="+", metavar="DATASET", help="folder of a data set")
    audit_flag("--against", metavar="FOLDER", help="policy, critic or reranker that they must fit to")
    recorded = "what counts as success where a data set neither declares it nor has a column next.success, which wins"
    audit_flag("--success", default="column", metavar=FACTS["success"][0], help=recorded)
    audit_flag("--reward", default="column", metavar=FACTS["reward"][0], help=FACTS["reward"][1])
    flag = add(declare, "write down beside a LeRobot data set what it does not say, one fact at a time or all at once")
    flag("dataset", help="folder of the data set")
    for name, (metavar, what) in FACTS.items():
        flag(f"--{name}", metavar=metavar, help=what)
    flag = add(label, "look at each episode of a LeRobot data set without outcomes and say how it went")
    flag("dataset", help="folder of the data set")
    flag("--page", action="store_true", help="in a browser on this machine, not in the terminal")
    flag("--port", type=int, default=0, help="of the page (default: any that is free)")
    critique_flag = add(critique, "whether a critic is worth reranking with, from recordings alone, and why")
    critique_flag("datasets", nargs="+", metavar="DATASET", help="folder of a LeRobot data set, or of a stage")
    critique_flag("--critic", required=True, metavar="FOLDER", help="stage folder of the critic")
    critique_flag("--policy", metavar="FOLDER", help="stage folder of the policy (default: the critic's own)")
    critique_flag("--output", metavar="FOLDER", help="default: critique in the critic's folder")
    for name, default, what in (
        ("candidates", 16, "chunks of the policy at a frame"),
        ("frames", 12, "most frames of an episode"),
        ("seed", 0, "of the candidates' noise and of the intervals"),
        ("films", 3, "films of so many successes, and as many failures"),
    ):
        critique_flag(f"--{name}", type=int, default=default, help=f"{what} (default: %(default)s)")
    add(export, "a run's policy and critic as one folder: deas-vla export --help", add_help=False)
    add(verify, "whether an exported reranker is unchanged and decides as it did")("folder")
    inspect_flag = add(inspect, "what an exported reranker is made of")
    inspect_flag("folder")
    for printing in (doctor_flag, audit_flag, inspect_flag):
        printing("--json", action="store_true", help="print one JSON object")
    arguments, settings = parser.parse_known_args(expand_home(sys.argv[1:]) if argv is None else argv)
    if settings and arguments.run is not export:
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    arguments.settings = settings

    def work() -> int | None:
        status = arguments.run(arguments)
        sys.stdout.flush()
        return status

    return exit_status(work, lambda line: print(line, file=sys.stderr))


if __name__ == "__main__":
    sys.exit(main())
