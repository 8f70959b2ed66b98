"""Trains nano: `python -m helios_serve.model_executor.training all --folder build/nano`."""

import argparse
import sys
from pathlib import Path

import torch

from helios_serve.errors import HeliosError
from helios_serve.logger import logger, show_logs
from helios_serve.model_executor.training.recipe import read_recipe
from helios_serve.model_executor.training.training import Training

STAGES = ("vae", "base", "mid", "ode", "dmd")


def main() -> int:
    arguments = parse_arguments()
    show_logs()
    torch.set_num_threads(arguments.threads)
    try:
        recipe = None if arguments.recipe is None else read_recipe(arguments.recipe)
        training = Training(arguments.folder, recipe)
        for stage in STAGES if arguments.stage == "all" else (arguments.stage,):
            if not training.run(stage, cpu_seconds=arguments.cpu_seconds):
                logger.info("%s: stopped at its budget; the same command continues it", stage)
                break
    except HeliosError as error:
        logger.error("%s", error)
        return 1
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="training", description=__doc__)
    parser.add_argument("stage", choices=("all", *STAGES), help="what to run; it continues a run")
    parser.add_argument("--folder", type=Path, default=Path("build/nano"), help="where to keep it")
    parser.add_argument("--recipe", type=Path, help="JSON file of a new folder's settings")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--cpu-seconds", type=float, help="stop each stage after so many")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
