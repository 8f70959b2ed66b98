"""Operations and bytes of decoding a chunk in bfloat16, counted on the meta device.

    python benchmarks/micro/vae_counts.py --size 640x384

Nothing is computed, so these are no timings.
"""

import argparse

from helios_serve.entrypoints.cli.arguments import size
from helios_serve.model_config import Geometry
from helios_serve.model_executor.counts import count_decode
from helios_serve.model_executor.loader import open_checkpoint

MODEL = "BestWishYsh/Helios-Distilled"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=size, default=(640, 384), metavar="WIDTHxHEIGHT")
    width, height = parser.parse_args().size
    work = count_decode(open_checkpoint(MODEL, "dummy").folder, Geometry(height, width)).total()
    print(f"{work.launches} operations, {work.bytes / 1e9:.0f} GB, {work.flops / 1e12:.1f} TFLOP")


if __name__ == "__main__":
    main()
