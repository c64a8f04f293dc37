"""The command ``deas-vla``."""

import argparse
import json
import sys

from deas_vla.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="deas-vla", description="Tools of deas_vla; the main jobs are recipes/.")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor", help="what is installed, what is missing, and how to get it; fails if the demo cannot run"
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    doctor.set_defaults(run=_doctor)
    audit = commands.add_parser(
        "audit", help="whether LeRobot data sets (v2.0, v2.1, v3) are fit for training and fit together; fails if not"
    )
    audit.add_argument("datasets", nargs="+", metavar="DATASET", help="folder of a data set")
    audit.add_argument("--against", metavar="FOLDER", help="policy, critic or reranker that they must fit to")
    declare = commands.add_parser(
        "declare", help="write down beside a LeRobot data set what it does not say: units, success, reward"
    )
    declare.add_argument("dataset", help="folder of the data set")
    declare.add_argument(
        "--units", required=True, metavar="UNIT | COLUMN=UNIT,…",
        help="of states and actions, for example deg, or 'gripper.pos=range_0_100,*.pos=deg'",
    )  # fmt: skip
    declare.add_argument("--limits", default="", metavar="COLUMN=LOW:HIGH,…", help="of actions")
    declare.add_argument("--binary", default="", metavar="COLUMN,…", help="actions with two values only")
    declare.add_argument(
        "--source", default="demonstration", choices=("demonstration", "rollout"), help="what the episodes are"
    )
    declare.set_defaults(run=_declare)
    for command in (audit, declare):
        command.add_argument(
            "--success",
            default="column",
            metavar="column|done|reward|always|never",
            help="what counts as success where a data set does not declare it (default: next.success)",
        )
        command.add_argument(
            "--reward",
            default="column",
            metavar="column|success",
            help="what the reward is: next.reward (default), or 1 for the step that succeeds",
        )
    audit.add_argument("--json", action="store_true", help="print one JSON object instead of a report")
    audit.set_defaults(run=_audit)
    commands.add_parser(
        "export", add_help=False, help="a run's policy and critic as one folder: deas-vla export --help"
    ).set_defaults(run=_export)
    verify = commands.add_parser("verify", help="whether an exported reranker is unchanged and decides as it did")
    verify.add_argument("folder")
    verify.set_defaults(run=_verify)
    inspect = commands.add_parser("inspect", help="what an exported reranker is made of")
    inspect.add_argument("folder")
    inspect.add_argument("--json", action="store_true", help="print the manifest as one JSON object")
    inspect.set_defaults(run=_inspect)
    arguments, settings = parser.parse_known_args(argv)
    if settings and arguments.run is not _export:
        parser.error(f"unrecognized arguments: {' '.join(settings)}")
    arguments.settings = settings
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _doctor(arguments: argparse.Namespace) -> int:
    from deas_vla.doctor import diagnose, report

    diagnosis = diagnose()
    print(json.dumps(diagnosis) if arguments.json else report(diagnosis))
    return 0 if diagnosis["ready"] else 1


def _audit(arguments: argparse.Namespace) -> int:
    from deas_vla.data.audit.audit import audit, report_text
    from deas_vla.data.labels import LabelRules

    labels = LabelRules(arguments.success, arguments.reward)
    report = audit(arguments.datasets, arguments.against, labels)
    print(json.dumps(report.to_json()) if arguments.json else report_text(report))
    return 0 if report.fit else 1


def _declare(arguments: argparse.Namespace) -> int:
    from deas_vla.data.labels import LabelRules
    from deas_vla.data.lerobot import SIDECAR
    from deas_vla.data.lerobot.declare import declare_dataset, declared_contract

    labels = LabelRules(arguments.success, arguments.reward)
    contract = declared_contract(arguments.dataset, arguments.units, arguments.limits, arguments.binary)
    declare_dataset(arguments.dataset, contract, source=arguments.source, labels=labels)
    print(f"{arguments.dataset}/{SIDECAR} is written; check the data with: deas-vla audit {arguments.dataset}")
    return 0


def _export(arguments: argparse.Namespace) -> int:
    from deas_vla.config import parse
    from deas_vla.export.run import ExportConfig, export_run

    config = parse(ExportConfig, arguments.settings, prog="deas-vla export")
    export_run(config)
    print(f"{config.output} is written; check it with: deas-vla verify {config.output}")
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from deas_vla.export.verify import verify

    print(verify(arguments.folder))
    return 0


def _inspect(arguments: argparse.Namespace) -> int:
    from deas_vla.export.card import inspect_text
    from deas_vla.export.manifest import read_manifest

    manifest = read_manifest(arguments.folder)
    print(json.dumps(manifest) if arguments.json else inspect_text(manifest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
