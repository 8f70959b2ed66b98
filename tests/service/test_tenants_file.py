"""The tenants file: valid content, and errors."""

from pathlib import Path

import pytest

from helios_serve.entrypoints.cli.main import main
from helios_serve.errors import InvalidRequestError
from helios_serve.options.scheduling import TenantConfig
from helios_serve.service.tenants import Tenants, read_tenants

WHOLE = """
[defaults]
max_sessions = 4
sizes = ["640x384"]

[tenants.acme]
weight = 2
tiers = ["priority", "default"]
max_sessions = "unlimited"
max_queued = 9
frames_per_day = 100_000
sizes = ["64x64", "128x64"]

[tenants."b.c"]
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "tenants.toml"
    path.write_text(text)
    return path


def test_tenants_have_the_defaults_and_what_is_their_own(tmp_path: Path) -> None:
    defaults = TenantConfig(max_sessions=4, sizes=("640x384",))
    acme = TenantConfig(
        weight=2.0,
        tiers=("priority", "default"),
        max_queued=9,
        frames_per_day=100_000,
        sizes=("64x64", "128x64"),
    )
    assert read_tenants(written(tmp_path, WHOLE)) == Tenants(
        {"acme": acme, "b.c": defaults}, defaults
    )
    assert read_tenants(written(tmp_path, "")) == Tenants({}, TenantConfig())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = ", "is not valid TOML: Invalid value"),
        ("[tenant.a]", "got 'tenant', expected [defaults] and [tenants.NAME]"),
        ("tenants = 3", "got tenants = 3, expected a table [tenants]"),
        ("[tenants]\na = 3", "got tenants.a = 3, expected a table [tenants.a]"),
        ("[tenants.'a b']", "got tenant 'a b', expected 1 to 64 letters"),
        ("[tenants.a]\nwait = 3", "[tenants.a]: Object contains unknown field `wait`"),
        ("[defaults]\nwait = 3", "[defaults]: Object contains unknown field `wait`"),
        ("[tenants.a]\nweight = 0", "[tenants.a]: got weight = 0: expected `float` >= 0.001"),
        ("[tenants.a]\nweight = inf", "got weight = inf: expected `float` <= 1000000.0"),
        ("[tenants.a]\nweight = nan", "got weight = nan: expected `float`"),
        ("[tenants.a]\nweight = 'unlimited'", "got weight = 'unlimited': expected `float`"),
        ("[tenants.a]\nmax_queued = -1", "got max_queued = -1: expected `int` >= 0"),
        ("[tenants.a]\nmax_queued = true", "got max_queued = True: expected `int | null`"),
        ("[tenants.a]\nframes_per_day = 1.5", "got frames_per_day = 1.5: expected `int | null`"),
        ("[tenants.a]\ntiers = ['vip']", "got tiers = ['vip']: invalid enum value 'vip'"),
        ("[tenants.a]\ntiers = []", "got tiers = []: expected `array` of length >= 1"),
        ("[tenants.a]\nsizes = ['64']", "got sizes = ['64']: expected `str` matching regex"),
    ],
)
def test_what_is_wrong_is_told_with_file_table_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InvalidRequestError) as raised:
        read_tenants(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert message in str(raised.value)


def test_a_server_does_not_start_with_a_wrong_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ["serve", "--port", "0", "--data-dir", str(tmp_path / "data"), "--tenants"]
    assert main([*common, str(tmp_path / "none.toml")]) == 2
    path = written(tmp_path, "[tenants.a]\nweight = -1")
    assert main([*common, str(path)]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("none.toml: cannot be read: No such file or directory")
    assert "[tenants.a]: got weight = -1: expected `float` >= 0.001" in second
