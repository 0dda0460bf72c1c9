"""A rule is tried on a real machine the way that `affiant assertions test --vm` takes, QMP and all."""

from __future__ import annotations

import pytest

from affiant.assertions.bundle import packaged_library
from affiant.assertions.engine import Engine
from affiant.inspect.look import Target
from affiant.model.outcome import Outcome
from affiant.trial.live import judge_until, open_machine
from affiant.vm.references import ensure_reference
from lab.guests import LabGuest


def test_a_running_machine_is_judged_by_the_library(
    direct_guest: LabGuest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # As on a host that has built it: the image, and beside it the modules' files.
    file = ensure_reference(direct_guest.kernel, tmp_path_factory.mktemp("references"), progress=print)
    machine = direct_guest.machine
    assert machine.operator_qmp is not None
    target = Target("lab", machine.ram, machine.operator_qmp, file, machine.memory_bytes)
    with open_machine(target) as opened, Engine(packaged_library()) as engine:
        results, facts = judge_until(opened, engine, seconds=0)
    # What QEMU saves of the processors only a launcher has it save, and this machine has none.
    unseen = {result.name: result.reason for result in results if result.outcome is not Outcome.HOLDS}
    assert unseen.keys() == {"system_calls_as_built"}
    assert "only a launcher" in unseen["system_calls_as_built"]
    assert facts.keys() == {*engine.bundle.facts, *engine.bundle.queries}
