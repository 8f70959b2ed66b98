"""`helios-serve serve` with the flags that users of vLLM know."""

import re
import signal
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
import trustme

from helios_serve.entrypoints.cli.tls import check_tls
from helios_serve.errors import InvalidRequestError
from tests.support.api import PATIENCE, error_of, wait_until_ready
from tests.support.server import Server, running_server

KEY = "a-key-of-our-own"
AUTHORIZED = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEM file with the certificate and its key."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    return path


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "stderr"


@pytest.fixture(scope="module")
def server(
    certificate: Path, log: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    config = folder / "helios.yaml"
    config.write_text(
        f"model: nano\nserved-model-name: [helios, video]\nssl-certfile: {certificate}\n"
        "device: cpu\nmax-num-seqs: 2\nexecutor: inline\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HELIOS_API_KEY", KEY)
        with running_server(folder / "data", "--config", str(config), log=log) as started:
            yield started


@pytest.fixture(scope="module")
def http(server: Server, authority: trustme.CA) -> Iterator[httpx.Client]:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with httpx.Client(base_url=server.url, verify=context, timeout=60) as made:
        yield made


def test_the_server_speaks_https_and_asks_for_the_key(server: Server, http: httpx.Client) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    wait_until_ready(http)
    assert http.get("/v1/models").status_code == 401
    assert http.get("/v1/models", headers={"authorization": "Bearer x"}).status_code == 401
    assert http.get("/v1/models", headers=AUTHORIZED).status_code == 200


def test_a_model_has_its_served_names(http: httpx.Client) -> None:
    listed = http.get("/v1/models", headers=AUTHORIZED).json()["data"]
    assert [model["id"] for model in listed] == ["helios", "video"]
    for name in (None, "helios", "video"):
        body = {"prompt": "a dog", "num_frames": 1, "model": name}
        made = http.post("/v1/videos", json=body, headers=AUTHORIZED).json()
        assert (made["model"], made["size"]) == ("helios", "64x64")
    refused = http.post("/v1/videos", json=body | {"model": "nano"}, headers=AUTHORIZED)
    assert error_of(refused)["message"] == "got model 'nano', expected one of: helios, video"


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused_as_by_the_page(prompt: str, http: httpx.Client) -> None:
    refused = http.post("/v1/videos", json={"prompt": prompt}, headers=AUTHORIZED)
    assert refused.status_code == 400
    error = error_of(refused)
    assert (error["param"], error["code"]) == ("prompt", "invalid_value")
    assert error["message"].endswith("expected text that is not blank")


def test_the_log_says_what_happens_from_the_start_to_the_end(
    server: Server, log: Path, http: httpx.Client
) -> None:
    """The last test: it stops the server, as Ctrl-C does."""
    http.get("/health")
    deadline = time.monotonic() + PATIENCE
    while "ready in" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    http.close()  # a server waits some seconds for connections with TLS to be closed
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 130
    text = log.read_text()
    found = [
        re.search(pattern, text, re.M)
        for pattern in (
            r"loading helios$",
            r"helios is ready after \d+\.\d s$",
            rf"ready in \d+\.\d s: open {re.escape(server.url)}/ in a browser$",
            r"stopping now: unfinished videos resume with the next server$",
            r"helios-serve: interrupted$",
        )
    ]
    places = [match.start() for match in found if match is not None]
    assert len(places) == len(found), text
    assert places == sorted(places)


def test_a_certificate_that_does_not_fit_is_refused(
    authority: trustme.CA, certificate: Path, tmp_path: Path
) -> None:
    other = authority.issue_cert("127.0.0.1")
    other.private_key_pem.write_to_path(tmp_path / "other.key")
    other.cert_chain_pems[0].write_to_path(tmp_path / "other.pem")
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_text(
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n"
    )
    check_tls(certificate, None)
    check_tls(tmp_path / "other.pem", tmp_path / "other.key")
    for cert, key in (
        (certificate, tmp_path / "other.key"),
        (tmp_path / "other.pem", None),
        (tmp_path / "other.pem", encrypted),
        (tmp_path / "other.key", tmp_path / "other.key"),
        (None, certificate),
        (tmp_path, None),
    ):
        with pytest.raises(InvalidRequestError, match="got --ssl-"):
            check_tls(cert, key)
