"""The command ``deas-vla``."""

import argparse
import json
import sys

from deas_vla.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """Runs one subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="deas-vla", description="Tools of deas_vla; the main jobs are recipes/."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser(
        "doctor",
        help="what is installed, what each recipe still needs, and how to get it; fails if the demo cannot run",
    )
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    doctor.set_defaults(run=_doctor)
    arguments = parser.parse_args(argv)
    try:
        return arguments.run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _doctor(arguments: argparse.Namespace) -> int:
    from deas_vla.doctor import diagnose, report

    diagnosis = diagnose()
    print(json.dumps(diagnosis) if arguments.json else report(diagnosis))
    demo = diagnosis["parts"][0]
    return 0 if demo["ready"] else 1


if __name__ == "__main__":
    sys.exit(main())
