"""Generates docs/options.md: `python -m helios_serve.entrypoints.cli.options_document`."""

import argparse
from collections.abc import Iterator

import msgspec
from msgspec import inspect

from helios_serve.entrypoints.cli.main import OTHER_VARIABLES, make_parser
from helios_serve.entrypoints.cli.settings import variable_of
from helios_serve.options.benchmarks import LoadOptions, ReportOptions, TargetOptions
from helios_serve.options.edge import EdgeOptions
from helios_serve.options.fields import Option, options_of, without_metadata
from helios_serve.options.host import HostOptions
from helios_serve.options.objects import ObjectOptions
from helios_serve.options.realtime import RealtimeOptions
from helios_serve.options.sampling import SamplingOptions
from helios_serve.options.scheduling import BatchLimits, SchedulingConfig
from helios_serve.options.simulation import FitOptions, FleetOptions
from helios_serve.options.sweeps import CompareOptions, SweepOptions
from helios_serve.options.workers import WorkerOptions
from helios_serve.service.protocol import CreateVideo

INTRODUCTION = """\
# Options

Each option has the same name in every interface: bodies of `POST /v1/videos` and `session.start`,
lines of batch files, the Python API, vLLM-Omni's `extra_params` and SGLang's requests. On the
command line it is a flag. This page is generated from the code by `make docs`.
"""
SECTIONS: tuple[tuple[str, str, type[msgspec.Struct], type[msgspec.Struct] | None], ...] = (
    (
        "Sampling options",
        "Options that are left out use the defaults of the model's variant.",
        SamplingOptions,
        None,
    ),
    (
        "Request fields",
        "More fields of `POST /v1/videos`, `session.start` and batch lines. See\n"
        "[safety.md](safety.md) for reference images and videos, and [live.md](live.md) for\n"
        "realtime sessions.",
        CreateVideo,
        SamplingOptions,
    ),
    (
        "Realtime options",
        "More fields of `session.start`. See [live.md](live.md).",
        RealtimeOptions,
        None,
    ),
    (
        "Model options",
        "They are the same for all workers of a server: flags of `serve`, `run-batch` and\n"
        "`generate`, keywords of `Helios(...)`, and settings inside vLLM-Omni and SGLang. See\n"
        "[memory.md](memory.md) for their costs.",
        WorkerOptions,
        None,
    ),
    (
        "Batch and queue limits",
        "Flags of `serve` and `run-batch`, and settings inside vLLM-Omni and SGLang.",
        BatchLimits,
        None,
    ),
    (
        "Scheduler policies",
        "Fields of `SchedulingConfig` in Python. Tenants are configured in a file: see\n"
        "[tenants.md](tenants.md).",
        SchedulingConfig,
        BatchLimits,
    ),
    (
        "Connections and requests",
        "Flags of `serve`. See [safety.md](safety.md).",
        EdgeOptions,
        None,
    ),
    (
        "Object storage",
        "Flags of `serve`. See [objects.md](objects.md).",
        ObjectOptions,
        None,
    ),
    (
        "Load of a benchmark",
        "Flags of `helios-serve bench` and `simulate run`: which sessions they start, and when.",
        LoadOptions,
        None,
    ),
    (
        "Target of a benchmark",
        "Flags of `helios-serve bench serve` and `bench sweep`: which server is measured, and how.",
        TargetOptions,
        None,
    ),
    (
        "Results of a benchmark",
        "Flags of `helios-serve bench`: what is computed, and where it is written.",
        ReportOptions,
        None,
    ),
    (
        "Sweeps",
        "Flags of `helios-serve bench sweep`: a grid of loads, or a search for the capacity.",
        SweepOptions,
        None,
    ),
    (
        "Comparisons",
        "Flags of `helios-serve bench compare`.",
        CompareOptions,
        None,
    ),
    (
        "Simulated fleet",
        "Flags of `helios-serve simulate run`. See [capacity.md](capacity.md).",
        FleetOptions,
        None,
    ),
    (
        "Fitted costs",
        "Flags of `helios-serve simulate fit`.",
        FitOptions,
        None,
    ),
    (
        "Options inside another server",
        "Settings inside [vLLM-Omni](vllm-omni.md) and [SGLang](sglang.md), in addition to the\n"
        "model options and the batch and queue limits.",
        HostOptions,
        None,
    ),
)
COMMAND_LINE = """\
## Command line

Every flag of every command, and the environment variable that gives the same. A flag overrides the
variable, the variable overrides the file of `--config`, and the file overrides the default. See
[command_line.md](command_line.md).
"""
WITHOUT_FLAGS = (CreateVideo, RealtimeOptions, SchedulingConfig, HostOptions)


def document() -> str:
    """Return the page as Markdown."""
    parts = [INTRODUCTION]
    for title, text, kind, base in SECTIONS:
        known = {} if base is None else options_of(base)
        options = [option for name, option in options_of(kind).items() if name not in known]
        with_flags = kind not in WITHOUT_FLAGS
        parts.append(
            "\n".join((f"## {title}", "", text, "", *table(options, with_flags=with_flags), ""))
        )
    parts.append("\n".join((COMMAND_LINE, *flag_table(), "")))
    return "\n".join(parts)


def flag_table() -> Iterator[str]:
    """Yield the lines of a table of all flags: a row for each meaning of a flag."""
    commands: dict[tuple[str, str], list[str]] = {}
    for parser in make_parser().leaves():
        command = parser.prog.partition(" ")[2]
        for action in parser._actions:
            if action.option_strings and action.dest != "help":
                row = (action.option_strings[-1], flag_help(parser, action))
                commands.setdefault(row, []).append(command)
    yield "| flag | variable | commands | description |"
    yield "|---|---|---|---|"
    for (flag, text), names in sorted(commands.items()):
        yield f"| `{flag}` | `{variable_of(flag)}` | {', '.join(names)} | {text} |"
    yield ""
    yield f"Variables without a flag: {', '.join(f'`{name}`' for name in OTHER_VARIABLES)}."


def flag_help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return the help text of a flag, and its choices, as a cell of a table."""
    text = (action.help or "") % {"prog": parser.prog}
    choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
    return f"{text}{choices}".replace("|", "\\|")


def table(options: list[Option], *, with_flags: bool) -> Iterator[str]:
    """Yield the lines of a table of the options that have a description."""
    heads = ["option", *(["flag"] if with_flags else []), "type", "default", "description"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for option in options:
        if option.description:
            flag = [f"`{option.flag}`"] if with_flags else []
            cells = [f"`{option.name}`", *flag, type_text(option), option.default_text]
            yield f"| {' | '.join([*cells, option.description])} |"


def type_text(option: Option) -> str:
    """Return the type and range of an option, as users write it."""
    kind = option.kind
    if isinstance(kind, inspect.VarTupleType):
        items = option.allowed or name_of(without_metadata(kind.item_type))
        return f"list of {items}"
    if isinstance(kind, inspect.TupleType):
        return "[min, max]"
    return option.allowed or name_of(kind)


def name_of(kind: inspect.Type) -> str:
    """Return the name of a type, as users write it."""
    match kind:
        case inspect.BoolType():
            return "bool"
        case inspect.IntType():
            return "integer" if kind.ge is None else f"integer from {kind.ge}"
        case inspect.FloatType():
            return "number"
        case inspect.StrType():
            return "text"
        case inspect.DictType():
            return "object"
        case inspect.StructType():
            fields = ", ".join(field.name for field in kind.fields)
            return f"{{{fields}}}"
        case inspect.UnionType(types=types):
            return " or ".join(name_of(without_metadata(part)) for part in types)
    return type(kind).__name__


if __name__ == "__main__":
    print(document(), end="")
