"""`helios-serve workers`: lists, adds and drains the workers of a running engine."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from helios_serve.entrypoints.cli.arguments import add_data_dir
from helios_serve.entrypoints.cli.flags import workers as worker_group

if TYPE_CHECKING:
    from helios_serve.engine.loop.worker_handle import WorkerReport


def add_command(commands: Any) -> None:
    """Register the command and its actions."""
    parser = commands.add_parser(
        "workers", help="list, add or drain the workers of a running engine"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list all workers")
    adding = actions.add_parser("add", help="add workers")
    adding.add_argument(
        "group",
        nargs="?",
        type=worker_group,
        metavar="N[:ROLES][@KEY=VALUE,...]",
        help="workers to add, as in --workers of the engine (default: one like its first)",
    )
    draining = actions.add_parser(
        "drain", help="stop a worker after its sessions have moved to other workers"
    )
    draining.add_argument("worker", help="id of the worker, as listed")
    for action in (listing, adding, draining):
        action.set_defaults(run=run)
        add_data_dir(action, "data folder of the engine")
        action.add_argument("--model", help="model of the workers, if the engine has several")


def run(arguments: argparse.Namespace) -> int:
    """Send the command to the engine, and print its reply."""
    from helios_serve.service.control import ControlCommand, send_command

    command = ControlCommand(
        action=arguments.action,
        model=arguments.model,
        worker_id=getattr(arguments, "worker", None),
        group=getattr(arguments, "group", None),
    )
    answer = send_command(arguments.data_dir, command)
    for worker_id in answer.added:
        print(f"{worker_id} is starting")
    if arguments.action == "drain":
        print(f"{arguments.worker} is draining")
    if arguments.action == "list":
        rows = [
            (
                model,
                worker.worker_id,
                state_of(worker),
                "+".join(worker.roles),
                str(worker.sessions),
                f"{worker.used_blocks}/{worker.total_blocks}",
                worker.where,
            )
            for model, workers in answer.workers.items()
            for worker in workers
        ]
        print_table([HEADINGS, *rows])
    return 0


def state_of(worker: "WorkerReport") -> str:
    """Return the state of a worker, with its last error if its start failed."""
    if worker.retry_in is None:
        again = f", {worker.failed_starts} failed starts" if worker.failed_starts else ""
        return f"{worker.state}{again}"
    return (
        f"{worker.state} at start {worker.failed_starts}, next in {worker.retry_in:.0f} s: "
        f"{worker.error}"
    )


HEADINGS = ("MODEL", "WORKER", "STATE", "ROLES", "SESSIONS", "BLOCKS", "WHERE")


def print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
