"""Commands, flags, metrics, make targets, variables and markers that documents name exist."""

import argparse
import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from helios_serve.entrypoints.cli.main import make_parser
from helios_serve.entrypoints.cli.parser import opposite
from helios_serve.entrypoints.cli.settings import variable_of
from helios_serve.metrics import Metrics

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = re.compile(r"```\w*\n(?P<fence>.*?)```|^ {4}(?P<line>.*)$|`(?P<span>[^`\n]+)`", re.S | re.M)
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]*)")
METRIC = re.compile(r"\bhelios:([a-z]\w*)")
SCRIPT = re.compile(
    r"\b(?:benchmarks/(?:micro(?:/peers)?|simulator)|examples)/\w+\.py\b|model_executor/training/__main__\.py"
)
FILE = re.compile(r"[\w-]+\.(yaml|safetensors)")
VARIABLE = re.compile(r"\b(HELIOS_[A-Z_]+)\b")
FOREIGN = {
    "mypy": {"strict"},
    "pytest": {"hypothesis-profile"},
    "ray": {"head"},
    "curl": {"output"},
    "docker": {"rm"},
    "helm": {"set"},
    "kubectl": {"from-literal"},
    "pip": {"upgrade"},
    "sglang": {
        *("batching-delay-ms", "batching-max-size", "disagg-role", "dp-size", "model-path"),
        *("num-gpus", "pipeline-config-path"),
    },
    "vllm-omni": {
        *("additional-config", "deploy-config", "diffusion-streaming-output"),
        *("distributed-executor-backend", "max-num-seqs", "omni", "step-execution"),
    },
}
"""Flags of other programs, for pages that name the program in code or in their title."""
documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def code_of(document: Path) -> list[str]:
    """The lines of code blocks, with continued ones joined, and the code in the text."""
    found: list[str] = []
    for match in CODE.finditer(document.read_text().replace("\\\n", " ")):
        code = next(part for part in match.groups() if part is not None)
        found += code.splitlines()
    return found


def commands(document: Path, program: str) -> Iterator[list[str]]:
    """The arguments of each call of `program`, which may have variables and a folder before it."""
    start = re.compile(rf"^(?:[A-Z_]+=\S+ +)*(?:\S*/)?(?:python[\d.]* +)?{program}(?P<rest> .*)?$")
    for line in code_of(document):
        for command in re.split(r"&&|\|\||[;|>]", line):
            if match := start.match(command.strip()):
                yield shlex.split(match["rest"] or "", comments=True)


@cache
def command_flags() -> set[str]:
    """The flags of all commands of helios-serve."""
    return set(flags_of(make_parser()))


def flags_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        yield from (name.removeprefix("--") for name in action.option_strings)
        if action.nargs == 0:  # a switch
            yield from (opposite(name).removeprefix("--") for name in action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            for choice in action.choices.values():
                yield from flags_of(choice)


@cache
def script_flags(script: str) -> set[str]:
    """The flags of a script, read from its source: it may import what is not installed."""
    nodes = ast.walk(ast.parse((ROOT / script).read_text()))
    return {name.removeprefix("--") for node in nodes if (name := flag_of(node)) is not None}


def flag_of(node: ast.AST) -> str | None:
    """The flag that a call of `add_argument` names."""
    match node:
        case ast.Call(func=ast.Attribute(attr="add_argument"), args=[ast.Constant(str(name)), *_]):
            return name if name.startswith("--") else None
    return None


def known_flags(document: Path) -> set[str]:
    """Those of helios-serve, of scripts that the page names, and of other programs on it."""
    text, code = document.read_text(), "\n".join(code_of(document))
    flags = set(command_flags())
    for script in SCRIPT.findall(text):
        flags |= script_flags(script)
    for program, names in FOREIGN.items():
        if re.search(rf"\b{program}\b", f"{document.stem}\n{code}"):
            flags |= names
    return flags


@documents
def test_flags_exist(document: Path) -> None:
    named = set(FLAG.findall(document.read_text()))
    assert named - known_flags(document) == set()


def test_flags_of_other_programs_are_named_somewhere() -> None:
    """A flag that no document names any more would hide a mistake."""
    named = {flag for document in DOCUMENTS for flag in FLAG.findall(document.read_text())}
    assert set().union(*FOREIGN.values()) - named == set()


@documents
def test_commands_are_accepted(
    document: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """helios-serve's parser takes them as they are written. The files that they name exist."""
    monkeypatch.chdir(tmp_path)
    for arguments in commands(document, "helios-serve"):
        for name in (argument.rpartition("=")[2] for argument in arguments):
            if FILE.fullmatch(name):
                Path(name).touch()
        accepted = is_mention(arguments) or is_accepted(arguments)
        assert accepted, (arguments, capsys.readouterr().err)


def is_accepted(arguments: list[str]) -> bool:
    try:
        make_parser().parse_args(arguments)
    except SystemExit as end:  # --help and --version end it as well
        return end.code == 0
    return True


def is_mention(arguments: list[str]) -> bool:
    """The name of a command or of one of its flags, such as `helios-serve keys`."""
    name = " ".join(argument for argument in arguments if not argument.startswith("--"))
    flags = {argument.removeprefix("--") for argument in arguments if argument.startswith("--")}
    return name in parsers() and flags <= set(flags_of(parsers()[name])) and len(flags) < 2


@cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command and of its beginnings: "", "keys", "keys create"."""
    return dict(parsers_below(make_parser(), ""))


def parsers_below(
    parser: argparse.ArgumentParser, name: str
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice, child in action.choices.items():
                yield from parsers_below(child, f"{name} {choice}".strip())


def test_there_are_commands_to_check() -> None:
    found = [command for document in DOCUMENTS for command in commands(document, "helios-serve")]
    assert len([command for command in found if not is_mention(command)]) > 15


@documents
def test_scripts_take_their_flags(document: Path) -> None:
    for script in set(SCRIPT.findall(document.read_text())):
        for arguments in commands(document, re.escape(script)):
            given = {flag for argument in arguments for flag in FLAG.findall(argument)}
            assert given <= script_flags(script), script


@documents
def test_metrics_exist(document: Path) -> None:
    families = list(Metrics().registry.collect())
    names = {family.name for family in families}
    names |= {f"{family.name}_total" for family in families if family.type == "counter"}
    for suffix in ("bucket", "count", "sum"):
        names |= {f"{family.name}_{suffix}" for family in families if family.type == "histogram"}
    named = {f"helios:{name}" for name in METRIC.findall(document.read_text())}
    assert named - names == set()


@documents
def test_make_targets_exist(document: Path) -> None:
    """And the variables that are set for them."""
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
    for arguments in commands(document, "make"):
        for argument in arguments:
            name, is_variable, _ = argument.partition("=")
            if is_variable:
                assert re.search(rf"\$\({name}\)", makefile), argument
            else:
                assert name in targets, argument


def test_there_are_targets_to_check() -> None:
    named = {
        argument
        for document in DOCUMENTS
        for arguments in commands(document, "make")
        for argument in arguments
    }
    assert {"lint", "typecheck", "test", "WORKERS=4"} <= named


@documents
def test_variables_exist(document: Path) -> None:
    sources = [
        path.read_text()
        for folder in ("helios_serve", "kernels", "model_executor")
        for path in (ROOT / folder).rglob("*.py")
    ]
    of_flags = {variable_of(f"--{flag}") for flag in command_flags() if len(flag) > 1}
    for name in set(VARIABLE.findall(document.read_text())) - of_flags:
        assert any(f'"{name}"' in source for source in sources), name


def test_the_table_of_markers_is_that_of_pytest() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lines = project["tool"]["pytest"]["ini_options"]["markers"]
    table = re.search(r"\| marker \|.*?\n\n", (ROOT / "CONTRIBUTING.md").read_text(), re.S)
    assert table is not None
    first = "\n".join(row.split("|")[1] for row in table[0].splitlines() if row)
    assert set(re.findall(r"`(\w+)`", first)) == {line.partition(":")[0] for line in lines}
