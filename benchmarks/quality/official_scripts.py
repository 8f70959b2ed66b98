"""Runs HeliosBench's own scripts, for metrics that need weights of other models."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from helios_serve.benchmarks.quality.official import METRICS, results_file
from helios_serve.errors import HeliosError, InvalidRequestError

WEIGHTS = {
    "aesthetic": (
        "checkpoints/aesthetic_model/ViT-L-14.pt",
        "checkpoints/aesthetic_model/sa_0_4_vit_l_14_linear.pth",
    ),
    "motion_smoothness": ("checkpoints/AMT-S.yaml", "checkpoints/amt_model/amt-s.pth"),
    "semantic": (
        "checkpoints/ViCLIP/ViClip-InternVid-10M-FLT.pth",
        "checkpoints/ViCLIP/bpe_simple_vocab_16e6.txt.gz",
    ),
}
"""Files that a metric and its drift need, in the folder of the scripts."""
RUNNABLE = tuple(name for name in METRICS if name.removeprefix("drifting_") in WEIGHTS)
"""Metrics of scripts that need files only. Naturalness calls a model of OpenAI: run its script
yourself, with an API key, and put its results next to the others.
"""


def check_scripts(folder: Path, metrics: Sequence[str]) -> None:
    """Check that the scripts of `metrics` and their weights are there. Raises
    InvalidRequestError.
    """
    for name in metrics:
        if name not in RUNNABLE:
            raise InvalidRequestError(
                f"got --metrics {name}, expected names out of: {', '.join(RUNNABLE)}",
                param="metrics",
            )
        needed = (METRICS[name].script, *WEIGHTS[name.removeprefix("drifting_")])
        for each in needed:
            if not (folder / each).exists():
                raise InvalidRequestError(
                    f"got --official-scripts {folder} without {each}, which {name} needs: use the "
                    "folder eval of https://github.com/PKU-YuanGroup/Helios with its weights",
                    param="official_scripts",
                )


def run_script(
    metric: str, folder: Path, python: str, prompts: Path, videos: Path, results: Path
) -> None:
    """Run the script of a metric in its folder. It writes to `results`/NAME of the videos.

    Raises HeliosError if it fails, or writes no result.
    """
    command = [
        *(python, METRICS[metric].script),
        *("--input_csv", str(prompts.resolve())),
        *("--video_dir", str(videos.resolve())),
        *("--output_path", str(results.resolve())),
    ]
    try:
        status = subprocess.run(command, cwd=folder, check=False).returncode
    except OSError as error:
        raise HeliosError(
            f"cannot run --official-python {python}: {error.strerror or error}"
        ) from error
    written = results / videos.resolve().name / results_file(metric)
    if status or not written.exists():
        raise HeliosError(
            f"{METRICS[metric].script} ended with status {status} and "
            f"{'a' if written.exists() else 'no'} result: see its output above"
        )
