"""What a launcher tells its monitor: read strictly, and held against the launch record."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest

from affiant.launcher.monitor_pair import MonitorPair
from affiant.model.errors import ForgedError, MalformedError
from affiant.monitor.__main__ import _check_roots
from affiant.monitor.settings import MonitorSettings
from affiant.wire.launch_record import encode_launch_record
from tests.unit.launcher.test_launcher_settings import SETTINGS as LAUNCHER_SETTINGS
from tests.unit.wire import world

SETTINGS = MonitorSettings(1 << 30, 1 << 30, b"service", "/references", rules_root=b"rules", fleet="web")


class Launcher:
    def __init__(self, service_root: bytes, rules_root: bytes | None, fleet: str = "web") -> None:
        self.record = replace(
            world.LAUNCH_RECORD,
            service_root=hashlib.sha256(service_root).digest(),
            rules_root=rules_root and hashlib.sha256(rules_root).digest(),
            fleet=None if rules_root is None else fleet,
        )

    def ask(self, request: object) -> bytes:
        return encode_launch_record(self.record)


def test_settings_are_the_same_after_writing_and_reading() -> None:
    for settings in (SETTINGS, replace(SETTINGS, rules_root=None, fleet="default")):
        assert MonitorSettings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize("rules_root", [b"rules", None])
def test_a_monitor_reads_what_its_launcher_writes(rules_root: bytes | None) -> None:
    pair = MonitorPair.__new__(MonitorPair)
    pair._settings, pair._service_root, pair._rules_root = LAUNCHER_SETTINGS, b"service", rules_root
    settings = MonitorSettings.from_json(pair._monitor_settings())
    assert (settings.service_root, settings.rules_root) == (b"service", rules_root)
    assert settings.rules_interval_ms == 5_000
    assert settings.fleet == (LAUNCHER_SETTINGS.fleet if rules_root else "default")


@pytest.mark.parametrize(
    "bend",
    [
        {"rules_root": 7},
        {"rules_root": "***"},
        {"fleet": 7},
        {"fleet": "a/b"},
        {"rules_interval_ms": 10},
        {"rules_interval_ms": True},
        {"unknown": 1},
        {"memory_bytes": 1},
    ],
)
def test_other_settings_are_refused(bend: dict[str, object]) -> None:
    with pytest.raises(MalformedError, match="monitor settings"):
        MonitorSettings.from_json(json.dumps(json.loads(SETTINGS.to_json()) | bend))


@pytest.mark.parametrize(
    ("launched", "said"), [((b"service", b"rules"), "service"), ((b"rules", b"rules"), "service root")]
)
def test_a_service_root_that_was_not_launched_is_refused(launched: tuple[bytes, bytes], said: str) -> None:
    settings = replace(SETTINGS, service_root=b"another")
    with pytest.raises(ForgedError, match=said):
        _check_roots(settings, Launcher(*launched))  # type: ignore[arg-type]


@pytest.mark.parametrize("launched", [None, b"another"])
def test_a_rules_root_that_was_not_launched_is_refused(launched: bytes | None) -> None:
    """Whoever starts the monitor cannot slip other rules under a record that names none, or others."""
    with pytest.raises(ForgedError, match="rules root"):
        _check_roots(SETTINGS, Launcher(b"service", launched))  # type: ignore[arg-type]
    _check_roots(SETTINGS, Launcher(b"service", b"rules"))  # type: ignore[arg-type]
    with pytest.raises(ForgedError, match="rules root"):
        _check_roots(replace(SETTINGS, rules_root=None), Launcher(b"service", b"rules"))  # type: ignore[arg-type]


def test_another_fleet_than_the_launched_one_is_refused() -> None:
    """Whoever starts the monitor cannot give it the rules of machines that have less to hide."""
    with pytest.raises(ForgedError, match="fleet"):
        _check_roots(SETTINGS, Launcher(b"service", b"rules", fleet="db"))  # type: ignore[arg-type]
    unpublished = replace(SETTINGS, rules_root=None, fleet="any")
    _check_roots(unpublished, Launcher(b"service", None))  # type: ignore[arg-type]
