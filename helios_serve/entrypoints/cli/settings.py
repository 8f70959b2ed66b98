"""Values of flags from environment variables and from a YAML file.

They become words of the command line, so that each value is parsed and checked like a flag.
"""

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from helios_serve.options.fields import did_you_mean

PREFIX = "HELIOS_"
ON, OFF = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
"""Values of switches."""
KUBERNETES_LINK = "tcp://"
"""Start of the values that Kubernetes gives to variables such as HELIOS_PORT."""


class Flag(NamedTuple):
    """A flag of a command."""

    name: str
    action: argparse.Action

    @property
    def is_switch(self) -> bool:
        """Whether it takes no value."""
        return self.action.nargs == 0

    @property
    def is_list(self) -> bool:
        """Whether it can be repeated."""
        return isinstance(self.action, argparse._AppendAction)


class Setting(NamedTuple):
    """The value of a flag as words of the command line. `source` names where it comes from."""

    flag: str
    words: list[str]
    source: str


def variable_of(flag: str) -> str:
    """Return the environment variable of a flag: HELIOS_MAX_DISK for `--max-disk`."""
    return PREFIX + flag.removeprefix("--").replace("-", "_").upper()


def environment_settings(
    flags: Mapping[str, Flag], environment: Mapping[str, str]
) -> list[Setting]:
    """Return the flags that environment variables set. Empty variables set nothing.

    Variables of flags that can be repeated hold several values, separated by spaces and quoted as
    in a shell. Raises ArgumentTypeError.
    """
    settings = []
    for flag in flags.values():
        name = variable_of(flag.name)
        text = environment.get(name, "")
        if not text:
            continue
        if text.startswith(KUBERNETES_LINK):
            raise argparse.ArgumentTypeError(
                f"{name}: got {text!r}, expected a value of {flag.name}: Kubernetes sets this "
                "variable for a service of that name; use enableServiceLinks: false in the pod"
            )
        try:
            values = shlex.split(text) if flag.is_list else [text]
        except ValueError as error:
            raise argparse.ArgumentTypeError(
                f"{name}: {error}, expected values quoted as in a shell"
            ) from error
        settings.append(Setting(flag.name, words_of(flag, values, name), name))
    return settings


def file_settings(path: Path, flags: Mapping[str, Flag]) -> list[Setting]:
    """Return the flags that a YAML file sets: a mapping of flag names to values or lists.

    Every scalar is taken as the text that is written: `1:30` and `no` mean nothing else. Raises
    ArgumentTypeError, which names the line of the file.
    """
    settings: dict[str, Setting] = {}
    for key, value in read_mapping(path):
        line = key.start_mark.line + 1
        where = f"{path} line {line}"
        if not isinstance(key, yaml.ScalarNode):
            raise argparse.ArgumentTypeError(f"{where}: got a list as key, expected a flag's name")
        name = "--" + key.value.replace("_", "-")
        if name not in flags:
            known = [flag.removeprefix("--") for flag in flags]
            hint = did_you_mean(name.removeprefix("--"), known)
            raise argparse.ArgumentTypeError(f"{where}: got unknown key {key.value!r}{hint}")
        if name in settings:
            raise argparse.ArgumentTypeError(f"{where}: got {key.value!r} a second time")
        source = f"{where}: {key.value}"
        words = words_of(flags[name], values_of(value, source), source)
        settings[name] = Setting(name, words, source)
    return list(settings.values())


def read_mapping(path: Path) -> list[tuple[yaml.Node, yaml.Node]]:
    """Return the keys and values of a YAML file's mapping. Raises ArgumentTypeError."""
    try:
        node = yaml.compose(path.read_bytes(), Loader=yaml.SafeLoader)
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"got --config {path}, expected a readable file: {error.strerror}"
        ) from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" line {error.problem_mark.line + 1}"
        raise argparse.ArgumentTypeError(f"{path}{line} is not YAML: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{path} is not YAML: {reason}") from error
    if node is None:
        return []
    if not isinstance(node, yaml.MappingNode):
        raise argparse.ArgumentTypeError(
            f"{path}: got a {node.id}, expected a mapping of flags to values, such as port: 8000"
        )
    return list(node.value)


def values_of(node: yaml.Node, source: str) -> list[str]:
    """Return the texts of a scalar or of a list of scalars. Raises ArgumentTypeError."""
    nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
    if not all(isinstance(item, yaml.ScalarNode) for item in nodes):
        raise argparse.ArgumentTypeError(f"{source}: got a {node.id}, expected a value or a list")
    return [item.value for item in nodes]


def words_of(flag: Flag, values: list[str], source: str) -> list[str]:
    """Return the words that give a flag these values. Raises ArgumentTypeError for a switch."""
    if flag.is_list:
        return [f"{flag.name}={value}" for value in values]
    text = ",".join(values)
    if not flag.is_switch:
        return [f"{flag.name}={text}"]
    if text.lower() not in ON + OFF:
        raise argparse.ArgumentTypeError(f"{source}: got {text!r}, expected true or false")
    return [flag.name] if text.lower() in ON else []
