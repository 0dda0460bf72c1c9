"""What a look holds is freed with the last who uses it, without waiting for the collector of cycles."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from affiant.kernel.facts.registry import FACTS, collect
from affiant.kernel.machine.device_stream import parse_device_stream
from affiant.kernel.machine.saved_cpu import SavedCpus
from affiant.kernel.reference.module_files import module_files_beside, pack_module_files
from tests.unit.kernel.device_stream_builder import SystemRegisters, device_stream
from tests.unit.kernel.site_world import SiteWorld
from tests.unit.kernel.synthetic_guest import SyntheticGuest, make_reference


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_a_guest_that_was_looked_at_leaves_nothing_behind(tmp_path: Path) -> None:
    """Each opened guest holds a kernel's types and what was found legal: tens of megabytes."""
    reference = make_reference()
    reference.path = tmp_path / "kernel.reference"
    module_files_beside(reference.path).write_bytes(pack_module_files([]))
    synthetic = SyntheticGuest(reference=reference)
    synthetic.add_task(7, "sleeper", 1000)
    saved = parse_device_stream(device_stream(synthetic.cpus, [SystemRegisters()]), synthetic.cpus)
    guest = synthetic.open().with_saved(SavedCpus(0.0, saved))
    facts = collect(guest, FACTS, now=0)
    assert set(facts) == set(FACTS)
    held = [weakref.ref(guest.program), weakref.ref(guest.program.types), weakref.ref(guest._prepared)]
    del guest, facts
    assert [each() for each in held] == [None, None, None]


def test_patch_sites_that_were_judged_leave_nothing_behind() -> None:
    world = SiteWorld()
    world.look()
    held = [weakref.ref(world.seen.program), weakref.ref(world.seen.text_content)]
    del world
    assert [each() for each in held] == [None, None]


def test_a_program_does_not_find_what_is_gone() -> None:
    """Whoever keeps drgn's program alone is told what is missing, and gets no wrong answer."""
    guest = SyntheticGuest().open()
    bare = guest.program.drgn
    assert bare.type("struct list_head").size == 16
    del guest
    with pytest.raises(ValueError, match="find_symbols was asked"):
        bare.symbol("init_task")
    with pytest.raises(ValueError, match="memory is gone"):
        bare.read(0x1000, 8, physical=True)
    with pytest.raises(ValueError, match="find_type was asked"):
        _ = bare.type("struct task_struct")
