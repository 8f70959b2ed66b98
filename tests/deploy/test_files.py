"""Files of `deploy` that no test of its own runs: checked by the tools of what reads them."""

import re
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import trustme
import yaml

from helios_serve.entrypoints.cli.main import make_parser
from tests.support.balancers import (
    DEPLOY,
    NGINX,
    ROOT,
    adapted,
    free_port,
    program,
    with_libraries,
)
from tests.support.prometheus import BUILT as PROMETHEUS

KUBERNETES = "1.31"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
VARIABLE = re.compile(r"\$\(\w+\)")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def is_accepted(arguments: list[str]) -> bool:
    """Whether the command line takes them; variables of Kubernetes become a name."""
    make_parser().parse_args([VARIABLE.sub("helios-0", word) for word in arguments])
    return True


def output_of(*command: str, folder: Path = ROOT) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_all_yaml_is_well_formed() -> None:
    rules = (
        "{extends: default, rules: {line-length: {max: 120}, document-start: disable, "
        "comments: {min-spaces-from-content: 1}, braces: {max-spaces-inside: 0}, "
        "truthy: {check-keys: false}}}"
    )
    templates = DEPLOY / "helm" / "templates"
    files = [*DEPLOY.rglob("*.yml"), *DEPLOY.rglob("*.yaml"), *WORKFLOWS, ROOT / "mkdocs.yml"]
    files = [path for path in files if path.parent != templates]
    output_of(sys.executable, "-m", "yamllint", "-s", "-d", rules, *map(str, files))


def test_workflows_are_valid_and_call_what_exists() -> None:
    assert [path.name for path in WORKFLOWS] == ["release.yml", "tests.yml"]
    program = str(Path(sys.executable).with_name("actionlint"))
    # Without programs of the machine that it would call if they are there.
    assert output_of(program, "-shellcheck=", "-pyflakes=", *map(str, WORKFLOWS)) == ""
    tests, release = (yaml.safe_load(path.read_text()) for path in reversed(WORKFLOWS))
    for name in " ".join(tests["jobs"]["checks"]["strategy"]["matrix"]["target"]).split():
        output_of("make", "-n", name)
    push = release["jobs"]["images"]["steps"][-1]["with"]
    assert (ROOT / push["file"]).exists()
    (argument,) = re.findall(r"^(\w+)=", push["build-args"], re.M)
    assert f"ARG {argument}=" in (ROOT / push["file"]).read_text()


def test_a_release_has_a_section_in_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", headings[1])
    chart = yaml.safe_load((DEPLOY / "helm/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version


def test_kubernetes_accepts_the_manifests() -> None:
    kinds = []
    for document in documents("kubernetes/cells.yaml"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        kinds.append(document["kind"])
    assert kinds == ["Service", "PodDisruptionBudget", "StatefulSet"]
    (cluster,) = documents("kubernetes/raycluster.yaml")
    groups = (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"])
    for group in groups:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
        kubernetes_validate.validate(pod | group["template"], KUBERNETES, strict=True)


def test_the_server_takes_the_flags_of_its_containers() -> None:
    *_, cells = documents("kubernetes/cells.yaml")
    (cluster,) = documents("kubernetes/raycluster.yaml")
    (compose,) = documents("docker/compose.yaml")
    pods = (cells["spec"]["template"], cluster["spec"]["headGroupSpec"]["template"])
    containers = [each for pod in pods for each in pod["spec"]["containers"] if "args" in each]
    assert len(containers) == 2
    for arguments in (
        *(container["args"] for container in containers),
        compose["services"]["helios-serve"]["command"],
    ):
        assert is_accepted(arguments)


def test_the_image_is_made_of_what_there_is() -> None:
    text = (DEPLOY / "docker/Dockerfile").read_text()
    (command,) = re.findall(r"^CMD (\[.*\])$", text, re.M)
    assert is_accepted(yaml.safe_load(command))
    extras = re.findall(r'"\.\[([\w,]+)\]"', text)[0].split(",")
    declared = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    assert set(extras) <= set(declared)
    (compose,) = documents("docker/compose.yaml")
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (DEPLOY / "docker" / source).exists(), source


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "helios-serve.service"
    text = (DEPLOY / "systemd/helios-serve.service").read_text()
    installed = str(Path(sys.executable).with_name("helios-serve"))
    unit.write_text(
        adapted(
            text,
            {"/opt/helios-serve/bin/helios-serve": installed, "User=helios": "User=root"},
        )
    )
    output = output_of("systemd-analyze", "verify", str(unit))
    assert "helios-serve.service" not in output, output
    (start,) = re.findall(r"^ExecStart=\S+ (.*)$", text, re.M)
    config = tmp_path / "helios-serve.yaml"
    config.write_text("port: 8001\n")
    assert is_accepted(shlex.split(start.replace("/etc/helios-serve.yaml", str(config))))


@pytest.mark.slow
def test_prometheus_accepts_configuration_and_alerts() -> None:
    promtool = shutil.which("promtool") or str(PROMETHEUS.with_name("promtool"))
    folder = DEPLOY / "prometheus"
    assert "SUCCESS" in output_of(promtool, "check", "config", "prometheus.yml", folder=folder)
    assert "SUCCESS" in output_of(promtool, "test", "rules", "alerts_test.yml", folder=folder)


@contextmanager
def slow_server(go_on: threading.Event) -> Iterator[int]:
    """Sends the second half of a stream when it may go on."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-length", "10")
            self.end_headers()
            self.wfile.write(b"first")
            self.wfile.flush()
            go_on.wait(30)
            self.wfile.write(b"later")

        def log_message(self, *_: object) -> None:
            """Nothing is written to standard error."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.slow
def test_nginx_with_tls_buffers_no_stream(tmp_path: Path) -> None:
    authority, port, plain = trustme.CA(), free_port(), free_port()
    certificate = authority.issue_cert("video.example.com")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    go_on = threading.Event()
    with slow_server(go_on) as upstream:
        places = {
            "127.0.0.1:8000": f"127.0.0.1:{upstream}",
            "listen 80;": f"listen 127.0.0.1:{plain};",
            "listen 443": f"listen 127.0.0.1:{port}",
            "/etc/ssl/video.example.com.pem": f"{tmp_path}/both.pem",
            "/etc/ssl/private/video.example.com.key": f"{tmp_path}/both.pem",
        }
        config = adapted((DEPLOY / "nginx/tls.conf").read_text(), places)
        (tmp_path / "tls.conf").write_text(config)
        (tmp_path / "nginx.conf").write_text(NGINX.format(folder=tmp_path, config="tls.conf"))
        command = [program("nginx"), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")]
        nginx = subprocess.Popen(command, env=with_libraries(), stderr=subprocess.PIPE)
        try:
            with connected(plain) as insecure:
                redirected = request(insecure)
            assert redirected.startswith(b"HTTP/1.1 308 ")
            assert b"Location: https://video.example.com/v1/videos" in redirected
            context = ssl.create_default_context()
            authority.configure_trust(context)
            secure = context.wrap_socket(connected(port), server_hostname="video.example.com")
            assert secure.version() == "TLSv1.3"
            answer = request(secure)
            while b"first" not in answer:
                answer += secure.recv(4096)
            assert b"later" not in answer
            go_on.set()
            while b"later" not in answer:
                answer += secure.recv(4096)
            secure.close()
        finally:
            nginx.terminate()
            nginx.wait(30)
            assert nginx.stderr is not None
            nginx.stderr.close()


def connected(port: int) -> socket.socket:
    """A connection, once nginx listens."""
    for _ in range(300):
        try:
            return socket.create_connection(("127.0.0.1", port), 30)
        except ConnectionRefusedError:
            threading.Event().wait(0.1)
    raise AssertionError("nginx does not listen")


def request(connection: socket.socket) -> bytes:
    """Ask for something, and return the first part of the answer."""
    connection.sendall(b"GET /v1/videos HTTP/1.1\r\nHost: video.example.com\r\n\r\n")
    return connection.recv(4096)
