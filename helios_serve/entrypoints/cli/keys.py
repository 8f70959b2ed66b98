"""`helios-serve keys`: who may use a server."""

import argparse
import sys
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from helios_serve.entrypoints.cli.arguments import add_data_dir
from helios_serve.entrypoints.cli.workers import print_table
from helios_serve.errors import InvalidRequestError
from helios_serve.store.keys import DATABASE, ApiKey, KeyStore

EPILOG = """\
examples:
  helios-serve keys create --tenant acme --name laptop
  helios-serve keys list
  helios-serve keys revoke key_0123456789abcdef
"""
HEADINGS = ("ID", "TENANT", "NAME", "CREATED", "LAST USED", "STATE")


def add_command(commands: Any) -> None:
    """Register the command and its actions."""
    parser = commands.add_parser(
        "keys",
        help="create, list or revoke API keys",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    creating = actions.add_parser("create", help="make a key and print it, this once")
    creating.add_argument("--tenant", required=True, help="in whose name it is used")
    creating.add_argument("--name", default="", metavar="LABEL", help="what it is for")
    listing = actions.add_parser("list", help="show all keys, less the keys themselves")
    revoking = actions.add_parser("revoke", help="let nobody use a key any more")
    revoking.add_argument("id", help="as in the list")
    for action, run in ((creating, create), (listing, show), (revoking, revoke)):
        action.set_defaults(run=run)
        add_data_dir(action, "the server's, which may be running")


def create(arguments: argparse.Namespace) -> int:
    """The key alone goes to standard output, so that it can be piped to where it is kept."""
    with closing(KeyStore(arguments.data_dir)) as store:
        key, secret = store.create(arguments.tenant, arguments.name)
    print(f"{key.id} of tenant {key.tenant}; it is not shown again:", file=sys.stderr, flush=True)
    print(secret)
    return 0


def show(arguments: argparse.Namespace) -> int:
    with closing(existing(arguments.data_dir)) as store:
        print_table([HEADINGS, *rows_of(store.all())])
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    with closing(existing(arguments.data_dir)) as store:
        key = store.revoke(arguments.id)
    print(f"{key.id} of tenant {key.tenant} is revoked")
    return 0


def existing(folder: Path) -> KeyStore:
    """Nothing is made where nothing is, such as in a folder whose name was mistyped."""
    if not (folder / DATABASE).exists():
        raise InvalidRequestError(
            f"got --data-dir {folder}, expected a folder with {DATABASE}: no key was made there",
            param="data-dir",
        )
    return KeyStore(folder)


def rows_of(keys: Iterable[ApiKey]) -> list[tuple[str, ...]]:
    return [
        (
            key.id,
            key.tenant,
            key.label,
            moment(key.created_at),
            moment(key.last_used_at),
            "valid" if key.revoked_at is None else f"revoked {moment(key.revoked_at)}",
        )
        for key in keys
    ]


def moment(time: float | None) -> str:
    return "-" if time is None else f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%MZ}"
