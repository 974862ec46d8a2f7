"""One table checks every variable: switches take the same words, everything else is refused before anything starts."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from dind_k3s import guard, variables
from dind_k3s.plan import OFF, ON, Mistake, asked

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "rootfs/usr/local/lib/dind-k3s"
SPELLINGS = [spelled for word in (*ON, *OFF) for spelled in (word, word.upper(), word.title())]


def asked_in_shell(value: str) -> bool:
    script = f'source "{LIBRARY}/say.sh"; asked SWITCH'
    done = subprocess.run(["bash", "-euc", script], env={"SWITCH": value}, capture_output=True, check=False)
    assert not done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("value", ["", *SPELLINGS])
def test_every_switch_takes_these_words_in_python_and_in_shell(value: str) -> None:
    on = value.lower() in ON
    assert asked({"SWITCH": value}, "SWITCH") == asked_in_shell(value) == on
    assert not variables.mistakes(dict.fromkeys(variables.SWITCHES, value))


@pytest.mark.parametrize("value", ["2", "maybe", "enabled", "ja", " ", "1 ", "\n", "true\n", "-1", "00"])
@pytest.mark.parametrize("name", variables.SWITCHES)
def test_every_other_word_is_refused_with_the_words_that_there_are(name: str, value: str) -> None:
    (refused,) = variables.mistakes({name: value})
    assert refused.startswith(f"{name} is ")
    assert refused.endswith("expected: 1, true, yes, on, or 0, false, no, off")


def test_a_mistake_is_refused_before_a_volume_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIND_K3S_TEST_ROOT", str(tmp_path))
    unfinished = tmp_path / "app/k3s/.dind-k3s/tmp-1"
    unfinished.mkdir(parents=True)
    with pytest.raises(Mistake, match="K3S_DISABLE is perhaps") as refused:
        guard.check({"K3S_DISABLE": "perhaps", "K3S_RENEW_HOURS": "late"})
    assert len(refused.value.messages) == 2
    assert unfinished.exists()


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"K3S_CONFIG_FILE": "/mine.yaml"}, "K3S_CONFIG_FILE (it belongs into /app/k3s/config.yaml, or K3S_ARGS="),
        ({"K3S_DATA_DIR": "/data"}, "K3S_DATA_DIR (it belongs nowhere: the cluster's state is in the volume"),
        ({"INSTALL_K3S_EXEC": "--disable traefik"}, "INSTALL_K3S_EXEC (it belongs into K3S_ARGS)"),
        ({"K3S_TRAEFFIK": "0", "DIND_K3S_GRACE": "9"}, "DIND_K3S_GRACE (unknown), K3S_TRAEFFIK (unknown)"),
    ],
)
def test_a_variable_that_is_not_used_is_named(env: dict[str, str], line: str) -> None:
    (messages,) = variables.unused(env)
    assert messages.startswith(f"warning: not used: {line}")


def test_nothing_is_reported_of_what_the_image_kubernetes_and_k3s_set_or_read() -> None:
    quiet = {"K3S_CONFIG_FILE": "/run/dind-k3s/k3s/config.yaml", "K3S_PORT_6443_TCP": "tcp://10.43.0.9:6443"}
    quiet |= {"K3S_SERVICE_HOST": "10.43.0.9", "K3S_TOKEN": "x", "K3S_DATASTORE_ENDPOINT": "x", "K3S_DISABLE": "1"}
    assert variables.unused(quiet) == []


def test_no_variable_of_the_page_is_called_unknown() -> None:
    rows = re.findall(r"^\| (`[A-Z].*?) \|", (ROOT / "docs/image.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = {name for row in rows for name in re.findall(r"`([A-Z0-9_]+)`", row)}
    assert {"K3S_ARGS", "K3S_TOKEN", "DIND_K3S_STOP", "DOCKER_ARGS"} <= names
    assert variables.unused(dict.fromkeys(names, "1")) == []
