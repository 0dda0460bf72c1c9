"""The launcher's settings: strict, and the same after writing and reading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from affiant.launcher.settings import LAUNCHER_QMP, TPM_SOCKET, LauncherSettings
from affiant.model.errors import SetupError

SETTINGS = LauncherSettings(
    name="test",
    state_folder=Path("/state, x"),
    qemu=("qemu", "-chardev", f"socket,path={TPM_SOCKET}", "-qmp", f"unix:{LAUNCHER_QMP}"),
    ram=Path("/dev/shm/ram"),
    memory_bytes=1 << 30,
    below_4g_bytes=1 << 30,
    vtpm_authority=Path("/ca"),
    image_cache=Path("/images"),
    references=Path("/references"),
    passport_socket=Path("/state, x/relay/passport.sock"),
    service="http://127.0.0.1:1",
    service_root=Path("/root.pem"),
    rules_root=Path("/root.json"),
    rules="http://127.0.0.1:2/rules",
    fleet="web",
)


def test_round_trip() -> None:
    assert LauncherSettings.from_json(SETTINGS.to_json()) == SETTINGS
    bare = {"service": None, "service_root": None, "rules_root": None, "rules": None}
    plain = replace(SETTINGS, **bare, tpm=False, qemu=(LAUNCHER_QMP,))
    keeping = replace(SETTINGS, keep_facts=1000, keep_facts_seconds=60, facts_key=Path("/operator.pub"))
    assert LauncherSettings.from_json(keeping.to_json()) == keeping
    assert LauncherSettings.from_json(plain.to_json()) == plain


def test_placeholders_become_paths_in_qemus_spelling() -> None:
    arguments = SETTINGS.qemu_arguments()
    assert arguments[2] == "socket,path=/state,, x/launcher/tpm.sock"
    assert arguments[4] == "unix:/state,, x/launcher/qmp.sock"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", 7),
        ("state_folder", "relative"),
        ("qemu", ["qemu", LAUNCHER_QMP]),
        ("qemu", ["qemu", TPM_SOCKET]),
        ("qemu", "qemu"),
        ("qemu", [1]),
        ("memory_bytes", 1 << 10),
        ("memory_bytes", True),
        ("below_4g_bytes", 2 << 30),
        ("tpm", False),
        ("tpm", 1),
        ("keep_facts", -1),
        ("keep_facts", 1 << 20),
        ("keep_facts", "all"),
        ("keep_facts_seconds", 0),
        ("facts_key", "relative"),
        ("facts_key", "/operator.pub"),
        ("service", None),
        ("service_root", None),
        ("rules_root", None),
        ("rules_root", "relative"),
        ("rules_interval_ms", 999),
        ("fleet", ""),
        ("fleet", "../db"),
        ("passport_socket", "/state, x/passport.sock"),
        ("passport_socket", "/" + "x" * 110 + "/passport.sock"),
        ("surprise", 1),
    ],
)
def test_what_does_not_fit_is_refused(field: str, value: Any) -> None:
    document = json.loads(SETTINGS.to_json())
    document[field] = value
    with pytest.raises(SetupError):
        LauncherSettings.from_json(json.dumps(document))


@pytest.mark.parametrize("field", ["name", "ram", "qemu", "image_cache"])
def test_missing_field_is_refused(field: str) -> None:
    document = json.loads(SETTINGS.to_json())
    del document[field]
    with pytest.raises(SetupError, match=field):
        LauncherSettings.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '"x"'])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(SetupError):
        LauncherSettings.from_json(text)


def test_unreadable_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot be read"):
        LauncherSettings.load(tmp_path / "none.json")
