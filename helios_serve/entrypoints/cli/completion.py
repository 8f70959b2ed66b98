"""`helios-serve completion`: prints a script that completes commands and flags in a shell."""

import argparse
from functools import partial
from typing import Any

from helios_serve.entrypoints.cli.parser import CommandParser

SHELLS = ("bash", "zsh", "fish")
EPILOG = """\
examples:
  helios-serve completion bash > ~/.local/share/bash-completion/completions/helios-serve
  helios-serve completion zsh > ~/.zfunc/_helios-serve    # with fpath+=~/.zfunc before compinit
  helios-serve completion fish > ~/.config/fish/completions/helios-serve.fish
"""


def add_command(commands: Any, root: CommandParser) -> None:
    """Register the command, which describes the commands of `root`."""
    parser = commands.add_parser(
        "completion",
        help="print a script that completes commands and flags in a shell",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="shell that runs the script")
    parser.set_defaults(run=partial(run, root))


def run(root: CommandParser, arguments: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    complete_paths(root)
    print(shtab.complete(root, shell=arguments.shell))
    return 0


def complete_paths(root: CommandParser) -> None:
    """Mark the values that are files or folders, so that the shell completes their paths."""
    import shtab

    for parser in root.leaves():
        for action in parser._actions:
            if names_path(action):
                action.complete = shtab.FILE  # type: ignore[attr-defined]


def names_path(action: argparse.Action) -> bool:
    """Return whether an argument's placeholder says that its value is a file or a folder."""
    placeholder = action.metavar if isinstance(action.metavar, str) else ""
    return placeholder.startswith(("FILE", "FOLDER", "PATH"))
