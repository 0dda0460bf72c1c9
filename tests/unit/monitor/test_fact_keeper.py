"""Facts leave the monitor when they are asked for, signed and sealed, and never otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.kernel.facts.registry import FACTS
from affiant.model.errors import ForgedError
from affiant.monitor.fact_keeper import _bounded
from affiant.monitor.settings import MonitorSettings
from affiant.wire.fact_record import (
    MAX_PACKED,
    VerifiedFactRecord,
    open_kept,
    read_fact_record,
    verify_fact_record,
)
from tests.simulator import REFERENCE, make_world
from tests.unit.monitor.test_loop import Stage

KEY = X25519PrivateKey.from_private_bytes(b"\x0f" * 32)
RECIPIENT = KEY.public_key().public_bytes_raw()
HOUR = 3_600_000


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(packaged_library()) as engine:
        yield engine


def stage_with(tmp_path: Path, engine: Engine, *, every_ms: int = HOUR, key: bytes = b"") -> Stage:
    return Stage(make_world(tmp_path), engine, keep_facts_ms=every_ms, key=key)


def kept(stage: Stage, key: X25519PrivateKey | None = None) -> list[VerifiedFactRecord]:
    return [
        verify_fact_record(read_fact_record(open_kept(content, key=key)), root=stage.service.root)
        for content in stage.launcher.kept
    ]


def test_nothing_is_kept_unless_somebody_asked_for_it(tmp_path: Path, engine: Engine) -> None:
    stage = Stage(make_world(tmp_path), engine)
    stage.play("ask", stage.hook, "ask")
    assert stage.launcher.kept == []
    assert stage.kernel.whole_looks == 0


def test_the_first_look_of_a_session_is_kept_and_the_next_when_its_time_has_come(
    tmp_path: Path, engine: Engine
) -> None:
    stage = stage_with(tmp_path, engine)
    stage.play("ask", "ask", "ask")
    (first,) = kept(stage)
    assert stage.kernel.whole_looks == 1
    assert first.record.device == first.session.device
    assert first.record.reference == REFERENCE
    assert first.record.origins == {"kernel_text": f"fact {FACTS['kernel_text'].version}"}
    assert first.record.rules == engine.bundle.used
    assert (first.record.sequence, first.record.previous) == (1, bytes(32))


def test_each_look_is_kept_when_it_is_due_and_records_are_chained(tmp_path: Path, engine: Engine) -> None:
    stage = stage_with(tmp_path, engine, every_ms=1)
    stage.play("ask", "ask", "ask")
    records = [each.record for each in kept(stage)]
    assert len(records) >= 3
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    assert [record.previous for record in records[1:]] == [record.digest for record in records[:-1]]
    assert len({record.chain for record in records}) == 1


def test_the_look_that_first_shows_a_violation_is_kept_at_once_and_only_it(
    tmp_path: Path, engine: Engine
) -> None:
    stage = stage_with(tmp_path, engine)
    stage.play("ask", stage.hook, "ask", "ask", stage.repair, "ask", stage.hook, "ask")
    healthy, hooked = (each.record.facts["kernel_text"]["hooked"] for each in kept(stage))
    assert (healthy, hooked) == (False, True)


def test_after_a_reboot_the_same_violation_is_new(tmp_path: Path, engine: Engine) -> None:
    stage = stage_with(tmp_path, engine)

    def reboot() -> None:
        stage.launcher.generation += 1

    stage.play("ask", stage.hook, "ask", reboot, "ask", "ask")
    assert [each.record.facts["kernel_text"]["hooked"] for each in kept(stage)] == [False, True, True]


def test_records_are_sealed_to_the_operators_key(tmp_path: Path, engine: Engine) -> None:
    stage = stage_with(tmp_path, engine, key=RECIPIENT)
    stage.play("ask")
    assert len(kept(stage, KEY)) == 1
    assert b"kernel_text" not in stage.launcher.kept[0]
    with pytest.raises(ForgedError):
        kept(stage, X25519PrivateKey.generate())


def test_a_full_disk_stops_no_measurement_and_breaks_no_chain(tmp_path: Path, engine: Engine) -> None:
    stage = stage_with(tmp_path, engine, every_ms=1)

    def full() -> None:
        stage.launcher.full = not stage.launcher.full

    answers = stage.play("ask", full, "ask", full, "ask")
    assert len([answer for answer in answers if not isinstance(answer, str)]) == 3
    records = [each.record for each in kept(stage)]
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))


def test_without_a_session_nothing_is_kept(tmp_path: Path, engine: Engine) -> None:
    stage = stage_with(tmp_path, engine)
    stage.courier.unreachable = True
    stage.play("ask")
    assert stage.kernel.looks
    assert stage.launcher.kept == []


def test_what_is_too_large_for_a_record_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"small": {"x": 1}, "large": {"x": bytes(range(256)).hex() * 4}, "middle": {"x": "y" * 100}}
    assert _bounded(facts) == (facts, ())
    monkeypatch.setattr("affiant.monitor.fact_keeper.MAX_PACKED", 200)
    remaining, left_out = _bounded(facts)
    assert (set(remaining), left_out) == ({"small", "middle"}, ("large",))
    assert MAX_PACKED > 200


def test_settings_travel_and_a_key_of_another_length_is_refused() -> None:
    settings = MonitorSettings(
        1 << 30, 1 << 30, b"root", "/references", keep_facts_ms=600_000, facts_key=RECIPIENT
    )
    assert MonitorSettings.from_json(settings.to_json()) == settings
    for broken in ({"facts_key": b"short"}, {"keep_facts_ms": -1}, {"keep_facts_ms": 1 << 40}):
        with pytest.raises(Exception, match="monitor settings: facts"):
            MonitorSettings(1 << 30, 1 << 30, b"root", "/references", **broken)  # type: ignore[arg-type]
