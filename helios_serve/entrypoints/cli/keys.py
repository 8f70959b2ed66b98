"""`helios-serve keys`: creates, adds, lists and revokes API keys."""

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
  cat key.txt | helios-serve keys add --tenant acme --data-dir other-cell
  helios-serve keys revoke key_0123456789abcdef
"""
MAX_LINE = 1 << 10
HEADINGS = ("ID", "TENANT", "NAME", "CREATED", "LAST USED", "STATE")


def add_command(commands: Any) -> None:
    """Register the command and its actions."""
    parser = commands.add_parser(
        "keys",
        help="create, add, list or revoke API keys",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    creating = actions.add_parser(
        "create", help="create a key and print it; it cannot be shown again"
    )
    adding = actions.add_parser(
        "add", help="add a key that was created for another data folder, read from standard input"
    )
    for action in (creating, adding):
        action.add_argument("--tenant", required=True, help="tenant that the key belongs to")
        action.add_argument("--name", default="", metavar="LABEL", help="label of the key")
    listing = actions.add_parser("list", help="list all keys, without the secrets")
    revoking = actions.add_parser("revoke", help="revoke a key")
    revoking.add_argument("id", help="id of the key, as listed")
    for action, run in ((creating, create), (adding, add), (listing, show), (revoking, revoke)):
        action.set_defaults(run=run)
        add_data_dir(action, "data folder of the server, which may be running")


def create(arguments: argparse.Namespace) -> int:
    """Create a key. Only the key itself is printed to standard output, so that it can be piped."""
    with closing(KeyStore(arguments.data_dir)) as store:
        key, secret = store.create(arguments.tenant, arguments.name)
    print(f"{key.id} of tenant {key.tenant}; shown only once:", file=sys.stderr, flush=True)
    print(secret)
    return 0


def add(arguments: argparse.Namespace) -> int:
    """Add the key on standard input, so that it is in no list of processes."""
    secret = sys.stdin.readline(MAX_LINE).strip()
    with closing(KeyStore(arguments.data_dir)) as store:
        key = store.add(arguments.tenant, secret, arguments.name).key
    print(f"{key.id} of tenant {key.tenant}")
    return 0


def show(arguments: argparse.Namespace) -> int:
    with closing(open_existing(arguments.data_dir)) as store:
        print_table([HEADINGS, *rows_of(store.all())])
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    with closing(open_existing(arguments.data_dir)) as store:
        key = store.revoke(arguments.id)
    print(f"{key.id} of tenant {key.tenant} is revoked")
    return 0


def open_existing(folder: Path) -> KeyStore:
    """Open the key store of a folder. Raises InvalidRequestError instead of creating a new one."""
    if not (folder / DATABASE).exists():
        raise InvalidRequestError(
            f"got --data-dir {folder}, expected a folder with {DATABASE}: no key was created there",
            param="data-dir",
        )
    return KeyStore(folder)


def rows_of(keys: Iterable[ApiKey]) -> list[tuple[str, ...]]:
    return [
        (
            key.id,
            key.tenant,
            key.label,
            format_time(key.created_at),
            format_time(key.last_used_at),
            "valid" if key.revoked_at is None else f"revoked {format_time(key.revoked_at)}",
        )
        for key in keys
    ]


def format_time(time: float | None) -> str:
    """Format Unix seconds as UTC, to the minute; "-" for None."""
    return "-" if time is None else f"{datetime.fromtimestamp(time, UTC):%Y-%m-%dT%H:%MZ}"
