"""`helios-serve bench heliosbench`: makes the videos of HeliosBench, scores and merges them."""

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helios_serve import __version__
from helios_serve.entrypoints.cli import arguments as parsers
from helios_serve.entrypoints.cli.bench.run import require, run_loop
from helios_serve.entrypoints.cli.flags import add_options, read_flags
from helios_serve.errors import InvalidRequestError
from helios_serve.options.benchmarks import TargetOptions
from helios_serve.options.sampling import default_size, has_random_weights

if TYPE_CHECKING:
    from helios_serve.benchmarks.quality.cases import BenchCase
    from helios_serve.benchmarks.quality.making import BenchRun, Made
    from helios_serve.benchmarks.quality.scoring import FolderScores, VideoScore

EPILOG = """\
HeliosBench has 240 prompts and four lengths: use eval/playground/helios_t2v_prompts.csv of
https://github.com/PKU-YuanGroup/Helios, or another CSV with the columns id, prompt and duration.

examples:
  helios-serve bench heliosbench generate --prompts helios_t2v_prompts.csv --videos videos/mine \\
    --width 640 --height 384
  helios-serve bench heliosbench score --prompts helios_t2v_prompts.csv --videos videos/mine
  helios-serve bench heliosbench merge results/mine results/other
"""
FAILED = 1
"""Exit status if a video failed."""
RESULTS = Path("results")
NOT_IN_TARGET = ("endpoint", "timing", "session_timeout")


def add_benchmark(benchmarks: Any) -> None:
    parser = benchmarks.add_parser(
        "heliosbench",
        help="make the videos of HeliosBench, and score them",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_generate(actions)
    add_score(actions)
    shortening = actions.add_parser(
        "shorten", help="write the first 81 frames of each video, for the short track"
    )
    shortening.set_defaults(run=shorten_all)
    add_folders(shortening)
    shortening.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="folder of the short videos"
    )
    merging = actions.add_parser("merge", help="merge the results of models into ratings")
    merging.set_defaults(run=merge)
    merging.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="results of a model"
    )
    add_track(merging)
    merging.add_argument(
        "--output",
        type=Path,
        metavar="FILE.json",
        help="file of all models (default: all_models_merged.json next to the first folder)",
    )


def add_generate(actions: Any) -> None:
    parser = actions.add_parser(
        "generate", help="make the videos that a folder lacks, with a running server"
    )
    parser.set_defaults(run=generate)
    add_folders(parser)
    add_options(parser.add_argument_group("server"), TargetOptions, exclude=NOT_IN_TARGET)
    group = parser.add_argument_group("videos")
    group.add_argument(
        "--offline",
        metavar="MODEL",
        help="make them in this process with MODEL instead of a server (default: none)",
    )
    for name in ("width", "height"):
        group.add_argument(
            f"--{name}",
            type=parsers.integer,
            metavar="PIXELS",
            help=f"{name} of the videos (default: the model's)",
        )
    group.add_argument(
        "--seed", type=parsers.integer, default=0, metavar="N", help="seed (default: 0)"
    )
    group.add_argument(
        "--max-concurrency",
        type=parsers.integer,
        default=4,
        metavar="N",
        help="videos at a time (default: 4)",
    )
    group.add_argument(
        "--ids", metavar="ID,...", help="ids of the CSV (default: all)", type=parsers.names
    )


def add_score(actions: Any) -> None:
    parser = actions.add_parser(
        "score",
        help="measure videos, and run HeliosBench's own scripts if their weights are there",
    )
    parser.set_defaults(run=score)
    add_folders(parser)
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FOLDER",
        help=f"folder of results; each model has a folder in it (default: {RESULTS})",
    )
    parser.add_argument(
        "--official-scripts",
        type=Path,
        metavar="FOLDER",
        help="folder eval of the Helios repository, with its weights (default: none)",
    )
    parser.add_argument(
        "--official-python",
        default=sys.executable,
        metavar="FILE",
        help="Python that has the packages of these scripts (default: this one)",
    )
    parser.add_argument(
        "--metrics",
        type=parsers.names,
        metavar="NAME,...",
        help="metrics of these scripts (default: all that need no API key)",
    )
    add_track(parser)


def add_folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts",
        type=Path,
        required=True,
        metavar="FILE.csv",
        help="CSV with the columns id, prompt and duration (in frames)",
    )
    parser.add_argument(
        "--videos",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="folder of the videos of one model; its name is the model's name",
    )


def add_track(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--track",
        choices=("long", "short"),
        default="long",
        help="long: whole videos, scored for drift too; short: the first 81 frames (default: long)",
    )


def generate(arguments: argparse.Namespace) -> int:
    """Make the videos that a folder lacks. Returns the exit status."""
    require("aiohttp")
    from helios_serve.benchmarks.quality.cases import read_cases
    from helios_serve.benchmarks.quality.official import throughput_score

    cases = chosen(read_cases(arguments.prompts), arguments.ids)
    made = run_loop(make_all(arguments, cases))
    print(f"{len(made.made)} made, {len(made.kept)} kept, {len(made.failed)} failed")
    if (rate := made.frames_per_second) is not None:
        score = throughput_score(rate)
        print(f"{rate:.2f} frames/s, all videos together: throughput score {score} of HeliosBench")
    return FAILED if made.failed else 0


async def make_all(arguments: argparse.Namespace, cases: "list[BenchCase]") -> "Made":
    """Make videos with a server, or in this process."""
    from helios_serve.benchmarks.load.tenants import LoadTenants
    from helios_serve.benchmarks.quality.making import ServerMaker, begin_run, make_videos
    from helios_serve.benchmarks.targets.server import connected

    def report(case: "BenchCase", reason: str | None) -> None:
        print(f"{case.id}: {reason or f'{case.num_frames} frames'}", flush=True)

    if arguments.offline is not None:
        maker = OfflineMaker(arguments)
        begin_run(arguments.videos, maker.run)
        return await make_videos(cases, arguments.videos, maker, at_once=1, on_end=report)
    async with connected(read_flags(arguments, TargetOptions), LoadTenants()) as server:
        await server.wait_until_ready("default")
        run = await run_of(server, arguments)
        begin_run(arguments.videos, run)
        return await make_videos(
            cases,
            arguments.videos,
            ServerMaker(server, run),
            at_once=arguments.max_concurrency,
            on_end=report,
        )


async def run_of(server: Any, arguments: argparse.Namespace) -> "BenchRun":
    """Return how a server makes videos. Only helios-serve reports whether weights are random."""
    from helios_serve.benchmarks.quality.making import BenchRun
    from helios_serve.benchmarks.targets.target import SessionFailedError

    try:
        models = (await server.json("GET", "/v1/models", "default")).get("data", [])
    except (SessionFailedError, ValueError):
        models = []
    name = server.options.model or (models[0].get("id") if models else None)
    own: dict[str, Any] = next((model for model in models if model.get("id") == name), {})
    return BenchRun(
        model=name,
        width=arguments.width,
        height=arguments.height,
        seed=arguments.seed,
        random_weights=bool(own.get("random_weights")),
        version=__version__,
    )


class OfflineMaker:
    """Makes videos in this process, one at a time."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from helios_serve.benchmarks.quality.making import BenchRun
        from helios_serve.offline import Helios

        self.model = Helios(arguments.offline)
        size = default_size(arguments.offline)
        self.run = BenchRun(
            model=arguments.offline,
            width=arguments.width or size.width,
            height=arguments.height or size.height,
            seed=arguments.seed,
            random_weights=has_random_weights(arguments.offline),
            version=__version__,
        )

    async def __call__(self, case: "BenchCase", target: Path) -> None:
        """Make the video of a case in a thread, and write it to a file."""
        from helios_serve.benchmarks.quality.making import FRAMES_PER_SECOND, seed_of
        from helios_serve.media.mp4 import Mp4Writer

        def work() -> None:
            chunks = self.model.stream(
                case.prompt,
                width=self.run.width,
                height=self.run.height,
                num_frames=case.num_frames,
                fps=FRAMES_PER_SECOND,
                seed=seed_of(case, self.run.seed),
            )
            with Mp4Writer(target, fps=FRAMES_PER_SECOND) as writer:
                for chunk in chunks:
                    writer.append(chunk.as_frames())

        await asyncio.to_thread(work)


def chosen(cases: "list[BenchCase]", ids: tuple[str, ...] | None) -> "list[BenchCase]":
    """Return the cases with the given ids. Raises InvalidRequestError for an unknown one."""
    if not ids:
        return cases
    by_id = {str(case.id): case for case in cases}
    for each in ids:
        if each not in by_id:
            raise InvalidRequestError(f"got id {each}, expected ids of the CSV", param="ids")
    return [by_id[each] for each in ids]


def score(arguments: argparse.Namespace) -> int:
    """Measure the videos of a folder. Returns the exit status."""
    require_decoders()
    from helios_serve.benchmarks.quality.cases import read_cases
    from helios_serve.benchmarks.quality.making import read_run
    from helios_serve.benchmarks.quality.official_scripts import (
        RUNNABLE,
        check_scripts,
        run_script,
    )
    from helios_serve.benchmarks.quality.scoring import score_folder

    metrics: tuple[str, ...] = ()
    if arguments.official_scripts is not None:
        metrics = tuple(arguments.metrics or RUNNABLE)
        if arguments.track == "short":
            metrics = tuple(name for name in metrics if not name.startswith("drifting_"))
        check_scripts(arguments.official_scripts, metrics)
    elif arguments.metrics:
        raise InvalidRequestError(
            "got --metrics without --official-scripts, expected the folder of the scripts",
            param="metrics",
        )
    videos = videos_of(arguments, read_cases(arguments.prompts))
    run = read_run(arguments.videos)
    results = arguments.results / arguments.videos.resolve().name
    scores = score_folder(
        videos,
        results,
        random_weights=run is not None and run.random_weights,
        on_score=print_score,
    )
    for name in metrics:
        run_script(
            name,
            arguments.official_scripts,
            arguments.official_python,
            arguments.prompts,
            arguments.videos,
            arguments.results,
        )
    print_averages(scores)
    print(f"{results}: results")
    return 0


def require_decoders() -> None:
    """Raise HeliosError if a package of the extra `heliosbench` is not installed."""
    for package in ("cv2", "video_reader"):
        require(package, extra="heliosbench")


def videos_of(arguments: argparse.Namespace, cases: "list[BenchCase]") -> Any:
    from helios_serve.benchmarks.quality.cases import find_videos

    videos = find_videos(arguments.videos, cases)
    if not videos:
        raise InvalidRequestError(
            f"got --videos {arguments.videos} without videos, expected files such as "
            "7_240_ori261.mp4 (id, duration and frames) whose id is in the CSV",
            param="videos",
        )
    print(f"{len(videos)} videos of {len(cases)} prompts")
    return videos


def print_score(score: "VideoScore") -> None:
    print(f"{score.video_name}: motion_fb {score.motion_fb:.4f}", flush=True)


def print_averages(scores: "FolderScores") -> None:
    """Print a table of our own measures by duration."""
    from helios_serve.benchmarks.quality.scoring import OWN_MEASURES, averages_of

    averages = averages_of(scores.videos)
    print(f"{'':22}" + "".join(f"{name:>12}" for name in averages))
    for measure in ("videos", *OWN_MEASURES):
        cells = (averages[name][measure] for name in averages)
        print(f"{measure:22}" + "".join(f"{'-' if x is None else f'{x:.4g}':>12}" for x in cells))
    if scores.random_weights:
        print("no ratings: with random weights, the videos show noise")


def shorten_all(arguments: argparse.Namespace) -> int:
    """Write the first 81 frames of each video of a folder. Returns the exit status."""
    require_decoders()
    from helios_serve.benchmarks.quality.cases import SHORT_FRAMES, read_cases
    from helios_serve.benchmarks.quality.frames import shorten

    arguments.output.mkdir(parents=True, exist_ok=True)
    for video in videos_of(arguments, read_cases(arguments.prompts)):
        target = arguments.output / video.case.video_name(SHORT_FRAMES)
        if not target.exists():
            frames = shorten(video.path, target)
            if frames < SHORT_FRAMES:
                target.rename(arguments.output / video.case.video_name(frames))
            print(f"{video.path.name}: {frames} frames")
    return 0


def merge(arguments: argparse.Namespace) -> int:
    """Merge the results of models, and print their ratings. Returns the exit status."""
    from helios_serve.benchmarks.measure.result_files import write
    from helios_serve.benchmarks.quality.official import (
        ALL_MERGED,
        MERGED,
        as_json,
        merge_model,
        merge_models,
    )

    models = {}
    for folder in arguments.folders:
        if not folder.is_dir():
            raise InvalidRequestError(
                f"got {folder}, expected a folder of results", param="folders"
            )
        models[folder.resolve().name] = merge_model(folder, arguments.track)
        write(folder / MERGED, as_json(models[folder.resolve().name]))
    merged = merge_models(models)
    output = arguments.output or arguments.folders[0].resolve().parent / ALL_MERGED
    write(output, as_json(merged))
    for model, ratings in merged["models"].items():
        total = ratings["total_weighted_rating"]
        missing = models[model]["summary"]["missing_metrics"]
        said = f"none, missing {', '.join(missing)}" if total is None else f"{total:g}"
        print(f"{model}: total {said}")
        for name in merged["metrics"][:-1]:
            print(f"  {name}: {ratings.get(name) or '-'}")
    print(f"{output}: ratings")
    return 0
