"""apt's configuration: which settings of the machine it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.core.platforms import Platform
from pipeline.resolve import apt

# What packages and administrators put into apt.conf.d: index targets and a hook as appstream has them, languages, a
# proxy, credentials of a client certificate, and unsafe settings.
MACHINE = """
Acquire::IndexTargets::deb::DEP-11 {
    MetaKey "$(COMPONENT)/dep11/Components-$(NATIVE_ARCHITECTURE).yml";
    ShortDescription "Components";
    Description "DEP-11";
};
APT::Update::Post-Invoke-Success { "touch %(hook)s"; };
APT::Default-Release "stable";
Acquire::Languages { "de"; "en"; };
Acquire::GzipIndexes "true";
Acquire::AllowInsecureRepositories "true";
Acquire::http::Proxy "http://user:secret@127.0.0.1:3128";
Acquire::https::mirror.example.SslCert "/etc/ssl/client.pem";
Acquire::Check-Valid-Until "false";
Acquire::Retries "7";
"""


@pytest.fixture
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration on a machine whose apt.conf.d is MACHINE; the archive has no packages."""
    parts = tmp_path / "apt.conf.d"
    parts.mkdir()
    (parts / "50appstream").write_text(MACHINE % {"hook": tmp_path / "hook"})
    machine = tmp_path / "machine.conf"
    machine.write_text(f'Dir::Etc::parts "{parts}";\n')
    monkeypatch.setenv("APT_CONFIG", str(machine))
    dists = tmp_path / "archive/dists/suite"
    (dists / "main/binary-arm64").mkdir(parents=True)
    (dists / "main/binary-arm64/Packages").touch()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (dists / "Release").write_text(
        "Suite: suite\nArchitectures: arm64\nComponents: main\nSHA256:\n"
        f" {empty} 0 main/binary-arm64/Packages\n {'0' * 64} 5 main/dep11/Components-arm64.yml\n"
    )
    made = apt.configure(tmp_path / "state", [(f"file://{tmp_path}/archive", "suite", "/none")], [Platform.ARM64])
    sources = made.with_name("sources.list")
    sources.write_text(sources.read_text().replace("signed-by=/none", "trusted=yes"))
    return made


def settings(configuration: Path) -> dict[str, str]:
    dumped = apt.run(configuration, "apt-config", "dump").stdout.splitlines()
    return {name: value.strip('";') for name, _, value in (line.partition(" ") for line in dumped)}


def test_index_targets_and_hooks_of_the_machine_have_no_effect(configuration: Path, tmp_path: Path) -> None:
    done = apt.run(configuration, "apt-get", "update", "-qq", "--error-on=any")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "hook").exists()
    known = settings(configuration)
    assert known["Acquire::Languages::"] == "none"
    assert known["Acquire::AllowInsecureRepositories"] == "0"
    assert "APT::Default-Release" not in known


def test_the_machine_s_own_update_would_have_failed(configuration: Path, tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    ours = configuration.read_text()
    configuration.write_text(ours.replace(f"{configuration.parent}/none", f"{tmp_path}/apt.conf.d"))
    sources = configuration.with_name("sources.list")
    sources.write_text(sources.read_text().replace("target=Packages ", ""))
    done = apt.run(configuration, "apt-get", "update", "-qq", "--error-on=any")
    assert done.returncode != 0
    assert "Components-arm64.yml" in done.stderr


def test_proxies_credentials_and_retries_of_the_machine_are_used(configuration: Path) -> None:
    known = settings(configuration)
    assert known["Acquire::http::Proxy"] == "http://user:secret@127.0.0.1:3128"
    assert known["Acquire::https::mirror.example.SslCert"] == "/etc/ssl/client.pem"
    assert known["Acquire::Check-Valid-Until"] == "false"
    assert known["Acquire::Retries"] == "7"
    assert configuration.stat().st_mode & 0o077 == 0


def test_the_first_platform_is_native(tmp_path: Path) -> None:
    made = apt.configure(tmp_path, [], [Platform.ARM64, Platform.AMD64])
    assert settings(made)["APT::Architecture"] == "arm64"
