"""One chunk with diffusers' pipeline and with our engine: same weights, same noise, in turns.

    python benchmarks/micro/vs_diffusers.py [--device cuda] [--output results.json]
    python benchmarks/micro/vs_diffusers.py --sessions 4 --size 128x64
    python benchmarks/micro/vs_diffusers.py --dtype bfloat16 --their-dtype float32
    python benchmarks/micro/vs_diffusers.py --official FOLDER

Text encoding and VAE decoding are left out of both sides. Each side's time is the median over
rounds that alternate, so that a noisy machine disturbs both alike; the ratio is what counts. With
several sessions, which differ in prompt, seed and steps, diffusers makes one after the other and
we make them in shared batches. With another dtype for diffusers the difference of the outputs is
that of the dtype. With a checkout of the official repository its transformer takes turns too, in
diffusers' pipeline, with its own Triton norms and RoPE on a GPU (needs einops). The default model
is small enough for a CPU; --heads 40 --head-dim 128 --layers 40 --ffn-dim 13824 --size 640x384
--dtype bfloat16 is the published one.
"""

import argparse
import importlib
import importlib.util
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers import (
    AutoencoderKLWan,
    HeliosDMDScheduler,
    HeliosPyramidPipeline,
    HeliosTransformer3DModel,
)
from torch import Tensor
from torch.profiler import DeviceType, ProfilerActivity, profile

from helios_serve.core.history_manager import HistoryManager
from helios_serve.core.scheduler import Scheduler
from helios_serve.core.session import PADDING_ROWS, Session
from helios_serve.entrypoints.cli.arguments import size, steps
from helios_serve.messages import EncodedPrompt
from helios_serve.model_config import Geometry, HeliosConfig
from helios_serve.model_executor.components import build_transformer
from helios_serve.model_executor.device import DTYPES
from helios_serve.model_executor.loader import optimize_transformer
from helios_serve.model_executor.models.architectures import (
    WAN_VAE,
    model_index,
    scheduler_config,
)
from helios_serve.model_executor.models.helios.conditioning import block_noise_factor
from helios_serve.model_executor.models.helios.config import read_config
from helios_serve.model_executor.models.helios.transformer import HeliosTransformer
from helios_serve.model_executor.models.published import write_json
from helios_serve.model_executor.weights import set_tensors
from helios_serve.model_executor.worker.model_runner import ModelRunner
from helios_serve.model_executor.worker.tensors import as_data, as_tensor
from helios_serve.options.sampling import SamplingParams
from helios_serve.options.scheduling import SchedulingConfig
from helios_serve.options.workers import WorkerOptions
from helios_serve.video_request import VideoRequest

TEXT_DIM, PROMPT_TOKENS, PADDED_TOKENS = 256, 40, 512
SEED = 7
ROPE_DIM = {32: (12, 10, 10), 64: (24, 20, 20), 128: (44, 42, 42)}
KINDS = {"matmul": ("mm", "linear"), "attention": ("attention", "flash", "fmha")}


class Order(NamedTuple):
    """A session: its encoded prompt, (rows, TEXT_DIM), and its sampling options."""

    name: str
    states: Tensor
    seed: int
    steps: tuple[int, ...]


def make_transformer(arguments: argparse.Namespace, dtype: torch.dtype) -> Any:
    """Return diffusers' transformer with random weights, on the device."""
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(arguments.device):
            module = HeliosTransformer3DModel(
                num_attention_heads=arguments.heads,
                attention_head_dim=arguments.head_dim,
                num_layers=arguments.layers,
                ffn_dim=arguments.ffn_dim,
                text_dim=TEXT_DIM,
                rope_dim=ROPE_DIM[arguments.head_dim],
            )
    finally:
        torch.set_default_dtype(default)
    for name, parameter in module.named_parameters():
        if any(part in name for part in module._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    module.rope.float()
    return module.eval().requires_grad_(False)


def official_transformer(folder: Path, module: Any, device: str) -> Any:
    """Return the transformer of the official repository in `folder`, with `module`'s tensors.

    On a GPU it is set up as in its own inference script. Attention is torch's if the kernels that
    the script downloads are not available.
    """
    if not (folder / "helios" / "diffusers_version").is_dir():
        raise SystemExit(f"--official: got {folder}, expected a checkout of the Helios repository")
    sys.path.append(str(folder))
    theirs = importlib.import_module("helios.diffusers_version.transformer_helios_diffusers")
    with torch.device("meta"):
        official = theirs.HeliosTransformer3DModel.from_config(module.config)
    official.load_state_dict(module.state_dict(), assign=True)
    config = module.config  # of RoPE's tables, which the state does not contain
    official.rope = theirs.HeliosRotaryPosEmbed(config.rope_dim, config.rope_theta).to(device)
    if device != "cpu":
        if importlib.util.find_spec("kernels") is None:
            sys.modules["kernels"] = without_kernels()
        fast = importlib.import_module("helios.modules.helios_kernels")
        official = fast.replace_all_norms_with_flash_norms(fast.replace_rmsnorm_with_fp32(official))
        fast.replace_rope_with_flash_rope()
        backend = set_fastest_attention(official)
        print(f"official: its norms and RoPE in Triton, attention by {backend}")
    return official.eval().requires_grad_(False)


def without_kernels() -> ModuleType:
    """Replaces the hub's package `kernels`, without which the official code works, too."""

    def get_kernel(name: str) -> None:
        raise ImportError(f"{name}: the package kernels is not installed")

    stub = ModuleType("kernels")
    stub.get_kernel = get_kernel  # type: ignore[attr-defined]
    return stub


def set_fastest_attention(official: Any) -> str:
    for backend in ("_flash_3_hub", "flash_hub", "_native_flash"):
        try:
            official.set_attention_backend(backend)
        except Exception as error:  # each backend raises other errors
            print(f"official: no attention by {backend}: {str(error).splitlines()[0]}")
        else:
            return backend
    return "native"


def their_side(
    module: Any, arguments: argparse.Namespace, orders: Sequence[Order]
) -> Callable[[], list[Tensor]]:
    settings = {k: v for k, v in scheduler_config("distilled").items() if k != "_class_name"}
    vae = AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    vae.decode = lambda *_, **__: (torch.zeros(1, 3, 1, 8, 8),)
    pipeline = HeliosPyramidPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.to(arguments.device),
        scheduler=HeliosDMDScheduler(**settings),
        transformer=module,
        is_distilled=True,
    )
    pipeline.set_progress_bar_config(disable=True)
    factor = block_noise_factor(pipeline.scheduler.config.gamma).to(arguments.device)
    torch.linalg.cholesky = lambda _: factor  # its own fp32 Cholesky fails on the CPU
    width, height = arguments.size
    dtype = module.patch_embedding.weight.dtype

    def make(order: Order) -> Tensor:
        padded = order.states.new_zeros(1, PADDED_TOKENS, TEXT_DIM, dtype=dtype)
        padded[:, : len(order.states)] = order.states
        latents: Tensor = pipeline(
            prompt_embeds=padded,
            height=height,
            width=width,
            num_frames=33,
            guidance_scale=1.0,
            pyramid_num_inference_steps_list=list(order.steps),
            generator=torch.Generator().manual_seed(order.seed),
            output_type="latent",
        ).frames
        return latents

    return lambda: [make(order) for order in orders]


def our_side(
    module: Any, arguments: argparse.Namespace, orders: Sequence[Order], dtype: torch.dtype
) -> Callable[[], list[Tensor]]:
    config, transformer = our_transformer(module, torch.device(arguments.device), dtype)
    width, height = arguments.size
    blocks = HistoryManager.peak_blocks(Geometry(height, width)) * len(orders) + 1
    rows = sum(len(order.states) + PADDING_ROWS for order in orders)

    def run() -> list[Tensor]:
        scheduler = Scheduler(SchedulingConfig(), time.monotonic)
        worker = scheduler.add_worker("here", blocks, rows)
        runner = ModelRunner(
            config,
            transformer,
            torch.device(arguments.device),
            num_blocks=blocks,
            text_bytes=1 << 30,
        )
        for order in orders:
            params = SamplingParams(
                width=width, height=height, num_frames=33, seed=order.seed, steps=order.steps
            )
            request = VideoRequest(request_id=str(order.seed), prompt=order.name, params=params)
            session = Session(request, request.resolve(config), config, arrival=0.0)
            session.prompts.learn(EncodedPrompt(order.name, as_data(order.states.to(dtype))))
            scheduler.add_session(session)
        latents: dict[str, Tensor] = {}
        while (plan := scheduler.schedule(worker)).scheduled_steps:
            output = runner.execute_model(plan)
            for failure in output.failures:
                raise SystemExit(f"helios-serve: a step failed: {failure.message}")
            for chunk in output.chunks:
                latents[chunk.session_id] = as_tensor(chunk.latents)
        return [latents[str(order.seed)] for order in orders]

    return run


def our_transformer(
    module: Any, device: torch.device, dtype: torch.dtype
) -> tuple[HeliosConfig, HeliosTransformer]:
    """Ours as it is served, with the tensors of diffusers' `module`, which are there once.

    But on a GPU: there the projections of self-attention are joined, which copies them.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_json(folder, "model_index.json", model_index("distilled"))
        write_json(folder, "scheduler/scheduler_config.json", scheduler_config("distilled"))
        write_json(folder, "vae/config.json", WAN_VAE)
        module.save_config(folder / "transformer")
        config = read_config(folder)
        transformer, component = build_transformer(folder, config, dtype)
    for key, stored in module.state_dict().items():
        if (name := component.rename(key)) is not None:
            tensor = component.convert(name, stored).to(device, component.dtype_of(name))
            set_tensors(transformer, {name: tensor.contiguous()})
    assert isinstance(transformer, HeliosTransformer)
    optimize_transformer(transformer, WorkerOptions())
    return config, transformer.eval().requires_grad_(False)


def timed(run: Callable[[], list[Tensor]]) -> tuple[float, Tensor]:
    started = time.perf_counter()
    latents = [item.cpu() for item in run()]  # waits for the device
    return time.perf_counter() - started, torch.cat(latents).float()


def take_turns(
    sides: dict[str, Callable[[], list[Tensor]]], rounds: int, tolerance: float
) -> tuple[dict[str, list[float]], float, float]:
    """Return each side's seconds by round, and our largest and rms difference from diffusers."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    error = rms = 0.0
    for number in range(rounds + 1):
        taken, made = {}, {}
        for name, run in sides.items():
            taken[name], made[name] = timed(run)
        for name in sides:
            difference = made[name] - made["diffusers"]
            if (worst := difference.abs().max().item()) > tolerance:
                raise SystemExit(
                    f"{name}'s output differs from diffusers' by {worst:.2e}, expected at most "
                    f"{tolerance}"
                )
            if name == "helios-serve":
                error, rms = max(error, worst), max(rms, difference.square().mean().sqrt().item())
        if number == 0:  # round 0 warms up all sides
            continue
        for name, seconds in taken.items():
            times[name].append(seconds)
        print(f"round {number}: {describe_times(taken)}")
    return times, error, rms


def describe_times(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())


def typical_split(run: Callable[[], list[Tensor]], device: str) -> dict[str, float]:
    """Return the split of the median of three runs, by the share of other operators."""
    return sorted((split(run, device) for _ in range(3)), key=lambda item: item["other"])[1]


def split(run: Callable[[], list[Tensor]], device: str) -> dict[str, float]:
    """Return operators' shares of the time; on a GPU, kernels', as Triton's have no operator."""
    on_device = device != "cpu"
    own_time = attrgetter("self_device_time_total" if on_device else "self_cpu_time_total")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    with profile(activities=activities) as profiler:
        run()
    events = profiler.key_averages()
    operators = [event for event in events if event.key.startswith(("aten::", "mkldnn::"))]
    if on_device:
        counted = [event for event in events if event.device_type is not DeviceType.CPU]
    else:
        counted = operators
    spent = dict.fromkeys(KINDS, 0.0)
    for event in operators:
        if (kind := kind_of(event.key)) is not None:
            spent[kind] += own_time(event)
    total = sum(map(own_time, counted))
    shares = {kind: round(value / total, 3) for kind, value in spent.items()}
    return shares | {"other": round(1 - sum(spent.values()) / total, 3)}


def kind_of(operator: str) -> str | None:
    for kind, parts in reversed(KINDS.items()):
        if any(part in operator for part in parts):
            return kind
    return None


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--their-dtype", choices=sorted(DTYPES), help="the same as --dtype")
    parser.add_argument(
        "--official", type=Path, metavar="FOLDER", help="a checkout of the official repository"
    )
    parser.add_argument("--sessions", type=int, default=1)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64, choices=sorted(ROPE_DIM))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ffn-dim", type=int, default=1408)
    parser.add_argument("--size", type=size, default=(320, 192), metavar="WIDTHxHEIGHT")
    parser.add_argument("--steps", type=steps, default=(2, 2, 2), metavar="N,N,N")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args()


def make_orders(arguments: argparse.Namespace) -> list[Order]:
    """Return the sessions. Prompts differ in length, and every other session has half the steps."""
    generator = torch.Generator().manual_seed(1)
    orders = []
    for number in range(arguments.sessions):
        rows = PROMPT_TOKENS + 7 * number
        states = torch.randn(rows, TEXT_DIM, generator=generator).to(arguments.device)
        factor = 2 if number % 2 else 1
        counts = tuple(max(1, count // factor) for count in arguments.steps)
        orders.append(Order(f"prompt {number}", states, SEED + number, counts))
    return orders


def main() -> None:
    arguments = parse_arguments()
    dtype = DTYPES[arguments.dtype]
    their_dtype = DTYPES[arguments.their_dtype or arguments.dtype]
    orders = make_orders(arguments)
    module = make_transformer(arguments, their_dtype)
    ours = our_side(module, arguments, orders, dtype)
    sides = {"diffusers": their_side(module, arguments, orders), "helios-serve": ours}
    if arguments.official is not None:
        official = official_transformer(arguments.official, module, arguments.device)
        sides["official"] = their_side(official, arguments, orders)
    tolerance = 5e-5 if dtype == their_dtype == torch.float32 else 0.1
    times, error, rms = take_turns(sides, arguments.rounds, tolerance)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        "settings": {k: str(v) for k, v in vars(arguments).items() if k != "output"},
        "versions": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "machine": machine(arguments.device),
        "seconds": times,
        "median_seconds": medians,
        "ratio": medians["diffusers"] / medians["helios-serve"],
        "max_difference": error,
        "rms_difference": rms,
        "our_split": typical_split(ours, arguments.device),
    }
    if "official" in medians:
        result["ratio_to_official"] = medians["official"] / medians["helios-serve"]
        print(f"{result['ratio_to_official']:.2f} times as fast as the official transformer")
    print(
        f"{describe_times(medians)}, {result['ratio']:.2f} times as fast as diffusers; outputs "
        f"differ by {error:.1e} at most, {rms:.1e} rms; our time: {result['our_split']}"
    )
    if arguments.output is not None:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(result, indent=2) + "\n")


def machine(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
