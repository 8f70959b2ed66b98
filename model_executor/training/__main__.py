"""Trains nano: `python -m helios_serve.model_executor.training all --folder build/nano`."""

import argparse
import sys
from pathlib import Path
from typing import get_args

import torch

from helios_serve.errors import HeliosError
from helios_serve.logger import logger, show_logs
from helios_serve.model_config import Variant
from helios_serve.model_executor.models.nano.checkpoint import WEIGHTS
from helios_serve.model_executor.training.gates.figure import as_table
from helios_serve.model_executor.training.recipe import read_recipe
from helios_serve.model_executor.training.training import (
    STUDENT_STAGES,
    Training,
    unpack_weights,
)

STAGES = ("vae", "base", "mid", "ode", "dmd")


def main() -> int:
    arguments = parse_arguments()
    show_logs()
    torch.set_num_threads(arguments.threads)
    try:
        if arguments.command == "unpack":
            unpack_weights(arguments.folder)
            return 0
        recipe = None if arguments.recipe is None else read_recipe(arguments.recipe)
        student = getattr(arguments, "student", STUDENT_STAGES[0])
        training = Training(arguments.folder, recipe, student=student)
        if arguments.command == "check":
            return check(training, arguments)
        if arguments.command == "export":
            training.export(arguments.variant, arguments.output)
            return 0
        if arguments.command == "package":
            training.package(arguments.output)
            return 0
        for stage in STAGES if arguments.command == "all" else (arguments.command,):
            if not training.run(stage, cpu_seconds=arguments.cpu_seconds):
                logger.info(
                    "%s: stopped after --cpu-seconds; run the same command to continue", stage
                )
                break
    except HeliosError as error:
        logger.error("%s", error)
        return 1
    return 0


def check(training: Training, arguments: argparse.Namespace) -> int:
    """Measure the gates and print their figures. Returns 1 if one misses its limit, else 0."""
    figures = training.check(arguments.gates, arguments.videos, drifting=arguments.variant)
    print(as_table(figures))
    return int(not all(figure.passes for figure in figures))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--folder", type=Path, default=Path("build/nano"), help="folder of the training"
    )
    common.add_argument("--recipe", type=Path, help="JSON file with the recipe of a new training")
    common.add_argument("--threads", type=int, default=1, help="threads of torch")
    for name in ("all", *STAGES):
        stage = commands.add_parser(name, parents=[common], help=f"run or continue: {name}")
        stage.add_argument("--cpu-seconds", type=float, help="stop a stage after this time")
    trained = argparse.ArgumentParser(add_help=False)
    trained.add_argument(
        "--student",
        choices=STUDENT_STAGES,
        default=STUDENT_STAGES[0],
        help="the stage whose weights Distilled has",
    )
    gates = commands.add_parser("check", parents=[common, trained], help="measure the gates")
    gates.add_argument("--gates", default="ABCD", help="gates to measure")
    gates.add_argument("--videos", type=int, default=200, help="captions of B and C; a tenth for D")
    gates.add_argument(
        "--variant", choices=get_args(Variant), default="distilled", help="the variant of gate D"
    )
    export = commands.add_parser(
        "export", parents=[common, trained], help="write a checkpoint folder"
    )
    export.add_argument("variant", choices=get_args(Variant), help="base, mid or distilled")
    export.add_argument("output", type=Path, help="the checkpoint folder to write")
    package = commands.add_parser(
        "package", parents=[common, trained], help="write the weights of the built-in models"
    )
    package.add_argument("--output", type=Path, default=WEIGHTS, help="the folder of the files")
    unpack = commands.add_parser(
        "unpack", help="write the package's weights as a folder that trainings can start from"
    )
    unpack.add_argument("--folder", type=Path, required=True, help="the folder to write")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
