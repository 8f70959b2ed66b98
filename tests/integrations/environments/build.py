"""A virtual environment with a real engine, for a machine without a GPU, and this package in it.

    python build.py vllm_omni    prints the environment's folder, built if it is not there yet

The folder of the same name next to this file lists the packages. `first.txt` has those that pin
CUDA builds of others; they are installed without dependencies, after `torch.txt`. `rest.txt` has
the dependencies that are needed. The published torchvision and torchaudio are CUDA builds:
`cpu_torchvision.py` lets the former be imported beside CPU torch, and the latter's compiled
libraries go.

An environment lies below build/environments under a name with a hash of all that, and of what this
package says of itself, so that it is built once for each set of pins.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BUILT = ROOT / "build" / "environments"
SHIM = HERE / "cpu_torchvision.py"
EXTRA = "ray"
"""The only extra of helios-serve that the environments have."""


def folder_of(name: str) -> Path:
    """Return the folder of the environment `name`, built or not."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (*sorted((HERE / name).iterdir()), SHIM, Path(__file__)):
        digest.update(path.read_bytes())
    installed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = installed.pop("optional-dependencies")
    digest.update(json.dumps([installed, extras[EXTRA]]).encode())
    return BUILT / f"{name}-{digest.hexdigest()[:12]}"


def build(name: str) -> Path:
    """Return the environment `name`, which is built if it does not exist."""
    folder = folder_of(name)
    ready = folder / ".ready"
    if ready.exists():
        return folder
    for old in BUILT.glob(f"{name}-*"):
        shutil.rmtree(old)
    venv.create(folder, with_pip=True)
    pins = HERE / name
    held = ["-r", str(pins / "torch.txt")]
    pip(folder, *held)
    pip(folder, "--no-deps", "-r", str(pins / "first.txt"))
    pip(folder, *held, "-r", str(pins / "rest.txt"))
    mend_torch_packages(folder)
    pip(folder, *held, "--editable", f"{ROOT}[{EXTRA}]")
    ready.touch()
    return folder


def pip(folder: Path, *arguments: str) -> None:
    command = [str(folder / "bin" / "pip"), "--disable-pip-version-check", "install", "-q"]
    subprocess.run([*command, *arguments], check=True, stdout=sys.stderr)


def mend_torch_packages(folder: Path) -> None:
    """Let torchvision and torchaudio be imported, here and in every child process."""
    (site,) = (folder / "lib").glob("python3*/site-packages")
    shutil.copy(SHIM, site)
    (site / f"{SHIM.stem}.pth").write_text(f"import {SHIM.stem}\n")
    for library in (site / "torchaudio" / "lib").glob("*.so"):
        library.unlink()


if __name__ == "__main__":
    print(build(sys.argv[1]))
