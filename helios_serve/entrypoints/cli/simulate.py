"""`helios-serve simulate`: what a fleet would do, without one, in virtual time.

`run` puts a load on a simulated fleet, and measures it as `bench serve` does. `fit` finds the costs
of a device in a trace of a real server. The simulator is imported only when it runs: `serve` never
loads it.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from helios_serve.entrypoints.cli.bench.run import (
    INVALID,
    check_report,
    command_line,
    files_of,
    write_page,
)
from helios_serve.entrypoints.cli.flags import (
    add_options,
    add_worker_groups,
    read_flags,
    worker_groups,
)
from helios_serve.options.benchmarks import LoadOptions, ReportOptions
from helios_serve.options.sampling import default_size
from helios_serve.options.scheduling import BatchLimits
from helios_serve.options.simulation import FitOptions, FleetOptions
from helios_serve.options.workers import DEFAULT_MODEL, WorkerOptions

if TYPE_CHECKING:
    from helios_serve.benchmarks.measure.result_files import ResultFiles
    from helios_serve.benchmarks.simulator.simulation import FleetPlan, Simulated, SimulatedModel

MODEL = "BestWishYsh/Helios-Distilled"
MEASURED_ONLY = ("num_warmups", "slo_scale", "num_runs", "no_self_check", "disable_tqdm")
"""Options of a result that mean nothing in virtual time."""
RUN_EPILOG = """\
The engine is the real one, with its scheduling, admission and fault tolerance; its workers take the
time that a cost model says, and compute nothing. Results have the form of `bench serve`'s;
`bench compare` compares two simulated ones. The same command gives the same result.

Costs are assumed from datasheets until `simulate fit` measures them: results say which.

examples:
  helios-serve simulate run --workers 8 --request-rate 2 --duration 600 --steps 1,1,1 --fps 16
  helios-serve simulate run --workers 6:denoise --workers 2:encode+decode --users 8 \\
    --duration 600 --max-lead 2 --tier priority --kill 300:0 \\
    --goodput ttfc:5000 stall:0 --report report.html
"""
FIT_EPILOG = """\
Every fifth plan and task is held out; the errors are those on what was held out. Trace a load that
has batches of several sizes and all the video sizes that are to be simulated.

example:
  helios-serve serve nano --trace trace.json        # in one shell; then a load, then Ctrl-C
  helios-serve simulate fit trace.json --model nano --output costs.json
"""


def add_command(commands: Any) -> None:
    """Register the command and what it can do."""
    parser = commands.add_parser(
        "simulate", help="simulate a fleet of devices under load, in virtual time"
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_run(actions)
    add_fit(actions)


def add_run(actions: Any) -> None:
    parser = actions.add_parser(
        "run",
        help="run a load on a simulated fleet",
        epilog=RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run_load, log_level="critical")
    add_fleet_flags(parser)
    add_options(parser.add_argument_group("load"), LoadOptions)
    add_options(parser.add_argument_group("results"), ReportOptions, exclude=MEASURED_ONLY)


def add_fleet_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the model, the fleet and the scheduler."""
    group = parser.add_argument_group("fleet")
    group.add_argument(
        "--model",
        default=MODEL,
        help=f"model whose configuration is used; no weights are read (default: {MODEL})",
    )
    add_worker_groups(group)
    add_options(group, WorkerOptions, include=("history_blocks",))
    add_options(group, FleetOptions)
    add_options(parser.add_argument_group("scheduling"), BatchLimits)


def run_load(arguments: argparse.Namespace) -> int:
    """Simulate, and print what `bench serve` prints. Returns the exit status."""
    load, report = read_flags(arguments, LoadOptions), read_flags(arguments, ReportOptions)
    names = check_report(report)
    from helios_serve.benchmarks.load.workload import draw_workload
    from helios_serve.benchmarks.simulator.simulation import simulate

    model, plan = model_of(arguments), plan_of(arguments)
    files = files_of(report, "simulated", load, arguments.model)
    made = simulate(draw_workload(load), model, plan, report)
    return finish(made, names, files)


def model_of(arguments: argparse.Namespace) -> "SimulatedModel":
    """Read the configuration of `--model`. Raises CheckpointError."""
    from helios_serve.benchmarks.simulator.simulation import SimulatedModel
    from helios_serve.engine.launch import read_model_config

    config = read_model_config(arguments.model, "dummy")
    return SimulatedModel(arguments.model, config, default_size(arguments.model))


def plan_of(arguments: argparse.Namespace) -> "FleetPlan":
    """Return the fleet that the flags describe. Raises InvalidRequestError."""
    from helios_serve.benchmarks.simulator.costs import DeviceCosts
    from helios_serve.benchmarks.simulator.devices import device_costs
    from helios_serve.benchmarks.simulator.simulation import FleetPlan
    from helios_serve.engine.launch import read_model_config

    options = read_flags(arguments, FleetOptions)
    if options.costs is not None:
        costs = DeviceCosts.read(Path(options.costs))
    else:
        costs = device_costs(options.device, read_model_config(arguments.model, "dummy"))
    groups = worker_groups(arguments, arguments.model)
    workers = tuple(group.config for group in groups for _ in range(group.count))
    return FleetPlan(costs, workers, options, read_flags(arguments, BatchLimits))


def finish(made: "Simulated", names: list[str], files: "ResultFiles | None") -> int:
    """Print the result, and write it. Returns the exit status."""
    from helios_serve.benchmarks.measure.printed import printed
    from helios_serve.benchmarks.simulator.simulation import simulated_result, simulation_lines

    result = simulated_result(made, command=command_line())
    print(printed(result, names))
    for line in simulation_lines(made):
        print(line)
    if files is not None:
        files.write(result, made.sent, made.run.records)
        print(f"{files.path}: result, with its trace and sessions next to it")
    if made.run.report.report is not None:
        from helios_serve.benchmarks.reports.run_report import run_report

        write_page(made.run.report.report, run_report(result, made.run))
    return 0 if result["helios"]["valid"] else INVALID


def add_fit(actions: Any) -> None:
    parser = actions.add_parser(
        "fit",
        help="fit a device's costs to a trace of a real server",
        epilog=FIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=fit_device)
    parser.add_argument("trace", type=Path, help="file of `helios-serve serve --trace`")
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"model that the server made videos with (default: {DEFAULT_MODEL})",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FILE.json",
        help="file for the costs",
    )
    add_options(parser, FitOptions)


def fit_device(arguments: argparse.Namespace) -> int:
    """Fit, print the costs and their errors, and write them. Returns the exit status."""
    from helios_serve.benchmarks.measure.machine import cpu_name
    from helios_serve.benchmarks.measure.result_files import json_of, write
    from helios_serve.benchmarks.simulator.costs import slowdown_lines
    from helios_serve.benchmarks.simulator.fit import fit_costs
    from helios_serve.benchmarks.simulator.observations import read_observations
    from helios_serve.engine.launch import read_model_config

    options = read_flags(arguments, FitOptions)
    costs = fit_costs(
        read_observations(arguments.trace),
        read_model_config(arguments.model, "dummy"),
        name=options.name or cpu_name(),
        origin=f"fitted to {arguments.trace.name}, a trace of {arguments.model}",
        text_rows=options.text_rows,
    )
    for lane, error in costs.errors.items():
        print(f"{lane}: error {error.mape:.1%} of {error.n} held out, bias {error.bias:+.1%}")
    print(*slowdown_lines(costs), sep="\n")
    write(arguments.output, json_of(msgspec.to_builtins(costs)))
    print(f"{arguments.output}: costs of {costs.name}")
    return 0
