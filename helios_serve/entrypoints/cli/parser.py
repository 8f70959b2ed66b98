"""The argument parser of all commands.

It adds to argparse what users of other servers expect: flags that are also read from the
environment and from a file, errors of one line, and suggestions for misspelled names.
"""

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from helios_serve.entrypoints.cli.settings import (
    PREFIX,
    Flag,
    Setting,
    environment_settings,
    file_settings,
    variable_of,
)
from helios_serve.options.fields import did_you_mean

PROGRAM = "helios-serve"
CONFIG = "--config"
OWN_FLAGS = ("--help", "--version", CONFIG)
"""Flags that a configuration file cannot set."""
NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")
"""Negative numbers, which are values and not flags."""
AT_FLAG = re.compile(r"argument (--[\w-]+): ")
"""The start of argparse's message about the value of a flag."""

N = TypeVar("N")


class CommandLine(NamedTuple):
    """The words of a command line.

    - `flags`: the actions of the flags, each with its words.
    - `values`: the words that belong to no flag.
    - `tail`: the words from `--` on.
    """

    flags: list[tuple[argparse.Action, list[str]]]
    values: list[str]
    tail: list[str]


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser for one command, or for a command that has subcommands.

    Flags are written in full. Those that are not given are read from environment variables
    (`--port` from HELIOS_PORT), then from the file of `--config`. A switch `--offload` has an
    opposite, `--no-offload`, which overrides both.

    `alias` is a flag with the same meaning as the positional argument, such as `--model`. The value
    of either is stored under the flag's name.
    """

    def __init__(self, **options: Any) -> None:  # they depend on Python's version
        super().__init__(**(options | {"allow_abbrev": False}))
        self.alias: str | None = None
        self._sources: dict[str, str] = {}

    @property
    def flags(self) -> dict[str, Flag]:
        """The flags that the environment and a file can set, by name."""
        return {
            name: Flag(name, action)
            for action in self._actions
            for name in action.option_strings[-1:]
            if name not in OWN_FLAGS
        }

    @property
    def subparsers(self) -> dict[str, "CommandParser"]:
        """The parsers of subcommands by name."""
        if self._subparsers is None:
            return {}
        (action,) = self._subparsers._group_actions
        return dict(action.choices or {})

    def leaves(self) -> Iterator["CommandParser"]:
        """Yield the parsers of all commands that have no subcommands."""
        if not self.subparsers:
            yield self
        for parser in self.subparsers.values():
            yield from parser.leaves()

    def add_config_flag(self) -> None:
        self.add_argument(
            CONFIG,
            type=Path,
            metavar="FILE.yaml",
            help="YAML file with values for flags, by their names without dashes in front; flags "
            "and environment variables override it (default: none)",
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: N | None = None
    ) -> tuple[Any, list[str]]:
        """Parse the words with the settings added to them. Errors end the process with status 2."""
        words = list(sys.argv[1:] if args is None else args)
        if self.subparsers:
            self._check_command(words)
            return super().parse_known_args(words, namespace)
        line = self._split(words)
        settings = self._settings(line)
        self._sources = {setting.flag: setting.source for setting in settings}
        flags = [word for _, group in line.flags for word in group]
        lower = [word for setting in settings for word in setting.words]
        ordered = [*line.values, *flags, *lower, *line.tail]
        parsed, rest = super().parse_known_args(ordered, namespace)
        if rest:
            self.error(f"got unexpected {' '.join(rest)!r}")
        self._merge_alias(parsed)
        return parsed, []

    def error(self, message: str) -> NoReturn:
        """Print one line, and one that says how to get help. Ends the process with status 2."""
        if (match := AT_FLAG.match(message)) is not None and match[1] in self._sources:
            message = f"{self._sources[match[1]]}: {message[match.end() :]}"
        self.exit(2, f"{PROGRAM}: error: {message}\nTry '{self.prog} --help'.\n")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Raise ArgumentError for a value that is not one of the choices."""
        if action.choices is None or value in action.choices:
            return
        hint = did_you_mean(str(value), map(str, action.choices))
        expected = f"expected {' or '.join(map(str, action.choices))}{hint}"
        if isinstance(action, argparse._SubParsersAction):
            what = (action.metavar or "command").__str__().lower()
            expected = f"expected one of: {', '.join(action.choices)}{hint}"
            raise argparse.ArgumentError(None, f"got unknown {what} {value!r}, {expected}")
        raise argparse.ArgumentError(action, f"got {value!r}, {expected}")

    def _check_command(self, words: Sequence[str]) -> None:
        """End with an error for an unknown flag before the subcommand."""
        for word in words:
            if not is_flag(word):
                return
            if word not in self._option_string_actions:
                self._refuse_flag(word)

    def _refuse_flag(self, word: str) -> NoReturn:
        name = word.partition("=")[0]
        self.error(f"got unknown flag {name}{did_you_mean(name, self._option_string_actions)}")

    def _split(self, words: Sequence[str]) -> CommandLine:
        """Split the words. The opposite of a switch removes it. Unknown flags are errors."""
        line = CommandLine([], [], [])
        rest = list(words)
        while rest:
            word = rest.pop(0)
            if word == "--":
                line.tail.extend([word, *rest])
                return line
            name, has_value, _ = word.partition("=")
            if not is_flag(word):
                line.values.append(word)
            elif (action := self._option_string_actions.get(name)) is not None:
                group = [word]
                if action.nargs is None and not has_value:
                    group += rest[:1]
                    del rest[:1]
                elif action.nargs == "+" and not has_value:
                    while rest and not is_flag(rest[0]):
                        group.append(rest.pop(0))
                line.flags.append((action, group))
            elif (switch := self._switch_against(word)) is not None:
                kept = [item for item in line.flags if item[0] is not switch]
                line.flags[:] = [*kept, (switch, [])]
            else:
                self._refuse_flag(word)
        return line

    def _switch_against(self, word: str) -> argparse.Action | None:
        """Return the switch that `word` is the opposite of, or None."""
        action = self._option_string_actions.get(opposite(word))
        return action if action is not None and action.nargs == 0 else None

    def _settings(self, line: CommandLine) -> list[Setting]:
        """Return settings for flags that the command line leaves out, each from one source."""
        taken = [action for action, _ in line.flags]
        if self.alias is not None and (line.values or len(line.tail) > 1):
            taken.append(self._option_string_actions[self.alias])
        try:
            levels = [environment_settings(self.flags, os.environ)]
            if (path := self._config_path(line)) is not None:
                levels.append(file_settings(path, self.flags))
        except argparse.ArgumentTypeError as error:
            self.error(str(error))
        settings: list[Setting] = []
        for level in levels:
            blocked = {id(other) for action in taken for other in self._excluded_by(action)}
            chosen = [
                setting
                for setting in level
                if id(self._option_string_actions[setting.flag]) not in blocked
            ]
            settings += chosen
            taken += [self._option_string_actions[setting.flag] for setting in chosen]
        return settings

    def _excluded_by(self, action: argparse.Action) -> Iterator[argparse.Action]:
        """Yield `action` and the flags that cannot be given together with it."""
        yield action
        for group in self._mutually_exclusive_groups:
            if action in group._group_actions:
                yield from group._group_actions

    def _config_path(self, line: CommandLine) -> Path | None:
        """Return the file of `--config`, or of its environment variable."""
        for action, group in reversed(line.flags):
            if CONFIG in action.option_strings:
                return Path(group[-1].removeprefix(f"{CONFIG}="))
        if CONFIG not in self._option_string_actions:
            return None
        text = os.environ.get(variable_of(CONFIG))
        return Path(text) if text else None

    def _merge_alias(self, parsed: Any) -> None:
        """Store the positional argument under the name of the flag that gives the same."""
        if self.alias is None:
            return
        (positional,) = self._get_positional_actions()
        flag = self._option_string_actions[self.alias]
        value = getattr(parsed, positional.dest)
        if value is None or value == []:
            return
        if getattr(parsed, flag.dest) is not None:
            self.error(f"argument {self.alias}: not allowed with {positional.metavar}")
        setattr(parsed, flag.dest, value)


def is_flag(word: str) -> bool:
    """Return whether argparse takes a word for a flag. Numbers and text with spaces are values."""
    return len(word) > 1 and word[0] == "-" and not NEGATIVE.fullmatch(word) and " " not in word


def opposite(flag: str) -> str:
    """Return the flag that turns a switch off: `--no-offload` for `--offload`, and vice versa."""
    return f"--{flag[5:]}" if flag.startswith("--no-") else f"--no-{flag[2:]}"


def unknown_variables(root: CommandParser, known: Sequence[str]) -> Iterator[str]:
    """Yield a warning for each HELIOS_ variable that is probably a misspelled one.

    Other unknown ones are ignored, because Kubernetes sets some for each service.
    """
    names = {variable_of(flag) for parser in root.leaves() for flag in (*parser.flags, CONFIG)}
    endings = [name.removeprefix(PREFIX) for name in (*names, *known)]
    for name in os.environ:
        ending = name.removeprefix(PREFIX)
        if name == ending or ending in endings:
            continue
        if close := get_close_matches(ending, endings, n=1, cutoff=0.75):
            yield f"got unknown environment variable {name}; did you mean {PREFIX}{close[0]}?"
