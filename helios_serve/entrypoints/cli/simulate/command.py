"""`helios-serve simulate`: what a fleet would do, without one.

The simulator is imported only when it runs: `serve` never loads it.
"""

from typing import Any

from helios_serve.entrypoints.cli.simulate import fit, run


def add_command(commands: Any) -> None:
    """Register the command and what it can do."""
    parser = commands.add_parser(
        "simulate", help="simulate a fleet of devices under load, in virtual time"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    run.add_action(actions)
    fit.add_action(actions)
