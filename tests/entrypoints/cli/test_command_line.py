"""Flags, environment variables and configuration files, and the errors for mistakes in them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from helios_serve.entrypoints.cli.completion import SHELLS
from helios_serve.entrypoints.cli.main import OTHER_VARIABLES, main, make_parser
from helios_serve.entrypoints.cli.parser import unknown_variables
from helios_serve.entrypoints.cli.settings import variable_of

HEAVY = ("torch", "diffusers", "transformers", "ray")
"""Packages that take seconds to import."""


class Refusal(NamedTuple):
    """The result of a command line: imported heavy modules, exit status, standard error, and files
    that are left.
    """

    heavy: list[str]
    status: int
    said: str
    left: list[str]


def without_settings() -> dict[str, str]:
    """Return the environment without our variables."""
    return {name: text for name, text in os.environ.items() if not name.startswith("HELIOS_")}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - without_settings().keys():
        monkeypatch.delenv(name)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "helios.yaml"
    path.write_text(
        "# what a server usually needs\n"
        "model: nano-mid\n"
        "port: 8100\n"
        "max_num_seqs: 4\n"
        "workers: [1:encode+decode, 2:denoise]\n"
        "compile-sizes: [640x384, 384x640]\n"
        "offload: true\n"
        "api-key: one\n"
    )
    return path


def parse(*words: object) -> Any:
    return make_parser().parse_args([str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    """Return the error and the help hint of a rejected command line."""
    with pytest.raises(SystemExit, match="2"):
        parse(*words)
    printed = capsys.readouterr()
    assert not printed.out
    error, hint = printed.err.splitlines()
    prefix = "helios-serve: error: "
    assert error.startswith(prefix)
    return error.removeprefix(prefix), hint


def test_a_file_gives_what_flags_would_give(config: Path) -> None:
    parsed = parse("serve", "--config", config)
    assert (parsed.model, parsed.port, parsed.max_num_seqs) == (["nano-mid"], 8100, 4)
    assert [group.count for group in parsed.workers] == [1, 2]
    assert parsed.compile_sizes == ("640x384", "384x640")
    assert parsed.offload is True
    assert parsed.api_key == ["one"]
    assert parsed.max_queued is None


def test_flags_override_variables_which_override_the_file(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIOS_CONFIG", str(config))
    assert parse("serve").port == 8100
    monkeypatch.setenv("HELIOS_PORT", "8200")
    assert parse("serve").port == 8200
    assert parse("serve", "--port", "8000").port == 8000  # the default, but asked for
    monkeypatch.setenv("HELIOS_PORT", "")
    assert parse("serve").port == 8100
    other = config.with_name("other.yaml")
    other.write_text("port: 8300")
    assert parse("serve", "--config", other).port == 8300


def test_lists_replace_each_other_and_are_not_joined(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELIOS_API_KEY", "two 'three four'")
    assert parse("serve", "--config", config).api_key == ["two", "three four"]
    assert parse("serve", "--api-key", "five", "--config", config).api_key == ["five"]
    assert len(parse("serve", "--config", config, "--workers", "3").workers) == 1
    monkeypatch.setenv("HELIOS_PROMPT_AT", "'2:the sun sets' 3:night")
    switches = parse("generate", "a dog").switches
    assert [(switch.chunk, switch.prompt) for switch in switches] == [
        (2, "the sun sets"),
        (3, "night"),
    ]


def test_switches_can_be_turned_off_on_every_level(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parse("serve", "--config", config, "--no-offload").offload is None
    monkeypatch.setenv("HELIOS_OFFLOAD", "0")
    assert parse("serve", "--config", config).offload is None
    assert parse("serve", "--config", config, "--offload").offload is True
    monkeypatch.setenv("HELIOS_NO_ZERO_INIT", "yes")
    assert parse("generate", "a dog").use_zero_init is False
    assert parse("generate", "a dog", "--zero-init").use_zero_init is None
    assert parse("generate", "a dog", "--offload", "--no-offload").offload is None


def test_what_excludes_a_setting_overrides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELIOS_NUM_FRAMES", "40")
    assert parse("generate", "a dog").num_frames == 40
    parsed = parse("generate", "a dog", "--seconds", "2")
    assert (parsed.num_frames, parsed.seconds) == (None, 2)
    monkeypatch.setenv("HELIOS_PROMPT", "a cat")
    assert parse("generate").prompt == "a cat"
    assert parse("generate", "a dog").prompt == "a dog"
    assert parse("generate", "--", "-dog").prompt == "-dog"
    monkeypatch.setenv("HELIOS_MODEL", "nano-mid")
    assert parse("serve").model == ["nano-mid"]
    assert parse("serve", "nano", "nano-base").model == ["nano", "nano-base"]


@pytest.mark.parametrize(
    "words",
    [
        ("generate", "a dog", "--size", "64x64", "--offload"),
        ("generate", "--size", "64x64", "--offload", "a dog"),
        ("generate", "--size=64x64", "a dog", "--offload"),
        ("generate", "--offload", "--prompt", "a dog", "--size", "64x64"),
        ("generate", "--offload", "--size", "64x64", "--", "a dog"),
    ],
)
def test_the_order_of_words_means_nothing(words: tuple[str, ...]) -> None:
    parsed = parse(*words)
    assert (parsed.prompt, tuple(parsed.size), parsed.offload) == ("a dog", (64, 64), True)


def test_models_may_be_given_in_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse("serve", "--model", "a", "--port", "1", "--model", "b").model == ["a", "b"]
    assert parse("serve", "--port", "1", "a", "--max-queued", "2", "b").model == ["a", "b"]
    assert parse("serve", "--lora-modules", f"x={__file__}", "--model", "a").model == ["a"]
    error, _ = refused(capsys, "serve", "a", "--model", "b")
    assert error == "argument --model: not allowed with MODEL"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["serve", "--prot", "80"], "got unknown flag --prot; did you mean --port?"),
        (["serve", "--por", "80"], "got unknown flag --por; did you mean --port?"),
        (["generate", "--promt", "x"], "got unknown flag --promt; did you mean --prompt?"),
        (["keys", "list", "--datadir=x"], "got unknown flag --datadir; did you mean --data-dir?"),
        (["serve", "--xyzzy"], "got unknown flag --xyzzy"),
        (["serve", "-p", "80"], "got unknown flag -p"),
        (["--verison"], "got unknown flag --verison; did you mean --version?"),
        (["serv"], "got unknown command 'serv', expected one of: .*; did you mean serve"),
        (["keys", "creat"], "got unknown action 'creat', expected one of: .*mean create"),
        (
            ["serve", "--executor", "lokal"],
            "argument --executor: got 'lokal', expected inline or local or ray; did you mean lo",
        ),
        (["serve", "--port", "99999"], "argument --port: got '99999', expected an integer from 0"),
        (["serve", "--port", "-1"], "argument --port: got '-1', expected an integer from 0"),
        (["serve", "--max-num-seqs", "x"], "argument --max-num-seqs: got 'x', expected an integ"),
        (["generate", "a", "b"], "got unexpected 'b'"),
        (["serve", "--log-level", "loud"], "argument --log-level: got 'loud', expected debug or"),
        (["serve", "--api-key", " "], "argument --api-key: expected ASCII characters"),
    ],
)
def test_mistakes_are_one_line_with_the_nearest_name(
    words: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, hint = refused(capsys, *words)
    assert re.match(error.replace("?", r"\?").replace(" (", r" \("), found), found
    assert re.fullmatch(r"Try 'helios-serve[a-z -]* --help'\.", hint)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("prot: 80", "line 1: got unknown key 'prot'; did you mean port?"),
        ("\nconfig: x", "line 2: got unknown key 'config'"),
        ("host: a\nport: many", "line 2: port: got 'many', expected an integer from 0"),
        ("port: [1, 2]", "line 1: port: got '1,2', expected an integer"),
        ("port: {a: 1}", "line 1: port: got a mapping, expected a value or a list"),
        ("port: 1\nport: 2", "line 2: got 'port' a second time"),
        ("offload: maybe", "line 1: offload: got 'maybe', expected true or false"),
        ("- port", ": got a sequence, expected a mapping of flags to values"),
        ("port: 'x", " line 1 is not YAML: found unexpected end of stream"),
        ("port: \x00", " is not YAML: "),
        ("workers: 2:dance", "line 1: workers: got '2:dance', expected N, N:ROLES or"),
    ],
)
def test_mistakes_in_a_file_are_named_by_line(
    text: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "helios.yaml"
    path.write_text(text)
    found, _ = refused(capsys, "serve", "--config", path)
    assert found.startswith(f"{path}")
    assert error in found


def test_scalars_of_a_file_are_what_is_written(tmp_path: Path) -> None:
    """YAML 1.1 would read a time, a truth value and an octal number."""
    path = tmp_path / "helios.yaml"
    path.write_text("prompt: no\nnegative_prompt: 1:30\nseed: 0010\n")
    parsed = parse("generate", "--config", path)
    assert (parsed.prompt, parsed.negative_prompt, parsed.seed) == ("no", "1:30", 10)


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    error, _ = refused(capsys, "serve", "--config", "none.yaml")
    assert error == "got --config none.yaml, expected a readable file: No such file or directory"


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("HELIOS_PORT", "many", "HELIOS_PORT: got 'many', expected an integer from 0"),
        ("HELIOS_PORT", "tcp://10.0.0.1:8000", "HELIOS_PORT: .* enableServiceLinks: false"),
        ("HELIOS_OFFLOAD", "maybe", "HELIOS_OFFLOAD: got 'maybe', expected true or false"),
        ("HELIOS_API_KEY", "it's", "HELIOS_API_KEY: No closing quotation"),
        ("HELIOS_CONFIG", "none.yaml", "got --config none.yaml, expected a readable file"),
    ],
)
def test_mistakes_in_variables_are_named(
    name: str,
    text: str,
    error: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(name, text)
    found, _ = refused(capsys, "serve")
    assert re.match(error, found), found


def test_every_flag_has_a_variable_and_no_two_share_one() -> None:
    for parser in make_parser().leaves():
        names = [variable_of(flag) for flag in parser.flags]
        assert len(set(names)) == len(names)
        assert not set(names) & set(OTHER_VARIABLES)


def test_variables_that_are_probably_meant_for_us_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HELIOS_MAX_DISC", "1GB")
    monkeypatch.setenv("HELIOS_SERVICE_HOST", "10.0.0.1")  # Kubernetes' own
    monkeypatch.setenv("HELIOS_KERNELS", "reference")
    monkeypatch.setenv("HELIOS_FPS", "30")  # of another command
    (warning,) = unknown_variables(make_parser(), OTHER_VARIABLES)
    assert (
        warning == "got unknown environment variable HELIOS_MAX_DISC; did you mean HELIOS_MAX_DISK?"
    )


def test_every_value_has_its_default_in_the_help() -> None:
    """Except values that are required or have no default, such as the model of `workers list`."""
    without = {"--output", "--model", "--name", "--tenant"}
    for parser in make_parser().leaves():
        for flag in parser.flags.values():
            if not (flag.is_switch or flag.action.required or flag.name in without):
                assert "default: " in (flag.action.help or ""), flag.name


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_knows_commands_and_flags(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("run-batch", "served-model-name", "completion", "drain"):
        assert word in script


def test_bash_completes_a_command_a_flag_and_a_choice(tmp_path: Path) -> None:
    script = tmp_path / "completion"
    done = subprocess.run(
        [sys.executable, "-m", "helios_serve", "completion", "bash"],
        capture_output=True,
        check=True,
    )
    script.write_bytes(done.stdout)
    for words, expected in (
        (["gen"], "generate"),
        (["serve", "--ssl-k"], "--ssl-keyfile"),
        (["keys", "rev"], "revoke"),
        (["serve", "--executor", "r"], "ray"),
    ):
        program = (
            f'source {script}; COMP_WORDS=(helios-serve "$@"); COMP_CWORD=$#; '
            '_shtab_helios_serve; echo "${COMPREPLY[@]}"'
        )
        done = subprocess.run(
            ["bash", "-c", program, "bash", *words], capture_output=True, check=True
        )
        assert done.stdout.decode().split() == [expected]


REFUSED = [
    (["generate", "a dog", "--size", "100x64"], "got size 100x64"),
    (["generate", "a dog", "--steps", "2,2"], "got 2 step counts"),
    (["generate", "a dog", "--fps", "1000"], "got fps 1000"),
    (["generate", "a dog", "--guidance-scale", "7"], "got guidance_scale 7.0"),
    (["generate", "a dog", "--image", "none.png"], "none.png: got no such file"),
    (["generate", "a dog", "--output", "dog.avi"], "got --output dog.avi, expected a name"),
    (["generate", "a dog", "--output", "/proc/a.mp4"], "got --output /proc/a.mp4, expected"),
    (["generate", "a dog", "--output-latents", "x.pt"], "got --output-latents x.pt, exp"),
    (["generate", " "], "got an empty prompt"),
    (["generate", ""], "got an empty prompt"),
    (["generate", "--prompt", ""], "got an empty prompt"),
    (["generate"], "got no prompt"),
    (["generate", "a", "--model", "nano-big"], "got model 'nano-big'"),
    (["generate", "a", "--model", "."], ". is not a Helios checkpoint"),
    (["generate", "a", "--compile-sizes", "100x64"], "got size 100x64"),
    (["serve", "--compile-sizes", "100x64", "--port", "0"], "got size 100x64"),
    (["serve", "--context-parallel", "3", "--port", "0"], "got context parallel 3"),
    (
        ["serve", "--host", "192.0.2.1", "--port", "0"],
        "got --host 192.0.2.1 --port 0, exp",
    ),
    (["serve", "--trace", "/proc/trace.json", "--port", "0"], "got --trace /proc/trace.json"),
    (["serve", "--tenants", "none.toml", "--port", "0"], "none.toml"),
    (["serve", "--data-dir", "/proc/data", "--port", "0"], "cannot make /proc/data"),
    (["serve", "--webhook-url", "ftp://x", "--port", "0"], "--webhook-url: "),
    (["serve", "--ssl-certfile", "none.pem", "--port", "0"], "got --ssl-certfile none.pem"),
    (["serve", "nano", "nano", "--port", "0"], "got model name 'nano' more than once"),
    (["run-batch", "notes.txt", "--output", "videos"], "got notes.txt, expected a batch file"),
    (["run-batch", "lines.jsonl", "--output", "/proc/videos"], "cannot make /proc/videos"),
]
"""Command lines that are rejected without torch, and the beginnings of their errors."""
REFUSING = f"""
import contextlib, json, os, sys, tempfile
from pathlib import Path
from helios_serve.entrypoints.cli.main import main

for words in json.loads(sys.argv[1]):
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("notes.txt").write_text("no\\nrequest\\nhere\\n")
        body = dict(prompt="a dog")
        Path("lines.jsonl").write_text(json.dumps(dict(custom_id="a", body=body)) + "\\n")
        with open("stderr", "w+") as errors:
            os.dup2(errors.fileno(), 2)
            try:
                status = main(words)
            except SystemExit as end:
                status = end.code
            sys.stderr.flush()
            errors.seek(0)
            said = errors.read()
        left = sorted(os.listdir())
    heavy = [name for name in {HEAVY} if name in sys.modules]
    print(json.dumps([words, heavy, status, said, left]))
"""


@pytest.fixture(scope="module")
def refusals() -> dict[tuple[str, ...], Refusal]:
    """Run all command lines of REFUSED in turn, in a fresh process."""
    words = [words for words, _ in REFUSED]
    done = subprocess.run(
        [sys.executable, "-c", REFUSING, json.dumps(words)],
        capture_output=True,
        text=True,
        check=True,
        env=without_settings() | {"PYTHONSAFEPATH": "1"},
    )
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {tuple(words): Refusal(*rest) for words, *rest in found}


@pytest.mark.parametrize(("words", "error"), REFUSED)
def test_what_can_be_refused_without_torch_is(
    words: list[str], error: str, refusals: dict[tuple[str, ...], Refusal]
) -> None:
    """Importing torch takes ten times longer than all of these checks."""
    refusal = refusals[tuple(words)]
    assert (refusal.heavy, refusal.status) == ([], 2)
    (line,) = refusal.said.splitlines()
    assert line.startswith(f"helios-serve: error: {error}")
    assert {*refusal.left} - {"helios-data"} == {"notes.txt", "lines.jsonl", "stderr"}


@pytest.mark.parametrize(
    "words", [("completion", "bash"), ("serve", "--help"), ("version",), ("serve", "--prot")]
)
def test_a_reader_that_has_left_is_no_error(words: tuple[str, ...]) -> None:
    """As in `helios-serve completion bash | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "helios_serve", *words]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    if "--prot" in words:
        assert done.returncode == 2
        assert done.stderr.startswith("helios-serve: error: got unknown flag --prot")
    else:
        assert done.returncode in (0, 141)  # 141 if the output is larger than the buffer
        assert done.stderr == ""
