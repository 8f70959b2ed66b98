"""Debian's HAProxy and nginx, with the configurations of `deploy`."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import httpx2 as httpx

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BUILT = ROOT / "build/balancers"
LIBRARIES = BUILT / "usr/lib/x86_64-linux-gnu"
PATIENCE = 30.0
NGINX = """\
daemon off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  include {folder}/{config};
}}
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def program(name: str) -> str:
    """The program on the PATH, or the one that `make balancers` has unpacked."""
    found = shutil.which(name) or str(BUILT / "usr/sbin" / name)
    assert Path(found).exists(), f"no {name}; `make balancers` gets Debian's"
    return found


def with_libraries() -> dict[str, str]:
    return os.environ | {"LD_LIBRARY_PATH": str(LIBRARIES)}


def adapted(text: str, places: Mapping[str, str]) -> str:
    """A configuration with the addresses and paths of a test, each of which it must have."""
    for place, here in places.items():
        assert place in text, place
        text = text.replace(place, here)
    return text


@contextmanager
def running_haproxy(
    folder: Path, addresses: Mapping[str, str], large: Sequence[str] = ()
) -> Iterator[str]:
    """deploy/haproxy with `addresses` in place of its own, and API keys of large tenants."""
    shutil.copytree(DEPLOY / "haproxy", folder)
    port = free_port()
    config = folder / "haproxy.cfg"
    places = {**addresses, "bind :8080": f"bind 127.0.0.1:{port}"}
    config.write_text(adapted(config.read_text(), places))
    with (folder / "large-keys.lst").open("a") as file:
        file.writelines(f"{sha256(key.encode()).hexdigest()}\n" for key in large)
    command = [program("haproxy"), "-f", "haproxy.cfg", "-db"]
    with running(command, folder, f"http://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def running_nginx(
    folder: Path, addresses: Mapping[str, str], large: Sequence[str] = ()
) -> Iterator[str]:
    """deploy/nginx/cells.conf, as `running_haproxy`."""
    folder.mkdir()
    port = free_port()
    places = {
        **addresses,
        "listen 8080": f"listen 127.0.0.1:{port}",
        "/etc/nginx/large-keys.conf": f"{folder}/large-keys.conf",
    }
    config = adapted((DEPLOY / "nginx/cells.conf").read_text(), places)
    (folder / "cells.conf").write_text(config)
    keys = (DEPLOY / "nginx/large-keys.conf").read_text()
    (folder / "large-keys.conf").write_text(keys + "".join(f'"{key}" 1;\n' for key in large))
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, config="cells.conf"))
    command = [program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with running(command, folder, f"http://127.0.0.1:{port}") as url:
        yield url


@contextmanager
def running(command: Sequence[str], folder: Path, url: str) -> Iterator[str]:
    """Run a balancer until the block ends; `url` answers by then."""
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=with_libraries()
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while not answers(url):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/liveness").status_code == 200
    except httpx.TransportError:
        return False
