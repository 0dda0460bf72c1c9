"""Modules against their files: layout, relocation, and every byte that is not as packaged."""

from __future__ import annotations

import contextlib
import itertools
import random
import struct
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affiant.kernel.facts.registry import collect
from affiant.kernel.guest import Guest
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.modules import digests, references
from affiant.kernel.modules import judge as judge_module
from affiant.kernel.modules import look as module_look
from affiant.kernel.modules.image import ModulePlaces, link_module
from affiant.kernel.modules.loaded import Module, listed_modules
from affiant.kernel.modules.places import module_places
from affiant.kernel.modules.sites import functions_of
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.page_tables.executable_pages import LAST_CODE_ADDRESS
from affiant.kernel.reference.module_files import ModuleFiles, module_files_beside, pack_module_files
from affiant.kernel.reference.modules import ModuleEntry, encode_modules, read_module
from affiant.kernel.reference.relocatable import read_relocatable
from affiant.model.errors import ForgedError, MalformedError, UnavailableError
from tests.unit.kernel.module_builder import (
    ABSOLUTE64,
    ALLOC,
    EXECUTE,
    PC32,
    PLT32,
    WRITE,
    ModuleBuilder,
    small_module,
)
from tests.unit.kernel.synthetic_guest import (
    DIRECT_MAP,
    MODULE_AREA,
    MODULE_PHYSICAL,
    SLIDE,
    SYMBOLS,
    SyntheticGuest,
    make_reference,
)

THUNK = SYMBOLS["after_victim"] + SLIDE
KERNEL = {"victim": SYMBOLS["victim"] + SLIDE, "__x86_return_thunk": THUNK}
PLACES = ModulePlaces({"text": MODULE_AREA, "init_text": MODULE_AREA + (1 << 24)}, 0, True)


def entry_of(data: bytes) -> ModuleEntry:
    return read_module("lib/modules/6.1.0/kernel/first.ko", data)


def linked(module: ModuleBuilder, places: ModulePlaces = PLACES) -> Any:
    return link_module(read_relocatable(module.build()), places, KERNEL.get)


def distance(target: int, place: int) -> bytes:
    return struct.pack("<i", target - place - 4)


def test_a_module_is_laid_out_and_relocated_as_the_loader_does() -> None:
    areas = linked(small_module()).areas
    text, rodata = areas["text"], areas["rodata"]
    assert (text.start, rodata.start) == (MODULE_AREA, MODULE_AREA + 4096)
    code = text.expected.tobytes()
    assert code[1:5] == distance(KERNEL["victim"], MODULE_AREA + 1)
    assert code[8:12] == struct.pack("<Q", rodata.start)[:4]
    assert code[13:17] == distance(THUNK, MODULE_AREA + 13)
    assert rodata.expected[24:32].tobytes() == struct.pack("<Q", KERNEL["victim"])
    assert rodata.expected[32:36].tobytes() == struct.pack("<i", MODULE_AREA + 12 - (rodata.start + 32))
    assert not text.unknown.any() and text.padding[32:].all()


def test_areas_of_their_own_are_laid_out_each_from_its_base() -> None:
    bases = {"text": MODULE_AREA, "rodata": MODULE_AREA + 0x9000, "data": MODULE_AREA + 0xA000}
    areas = linked(small_module(), ModulePlaces(bases, 0, False)).areas
    assert areas["rodata"].start == MODULE_AREA + 0x9000
    assert areas["data"].expected[:8].tobytes() == b"writable"


def test_bytes_for_a_symbol_that_nobody_has_are_unknown_and_named() -> None:
    module = small_module()
    found = link_module(read_relocatable(module.build()), PLACES, {"victim": KERNEL["victim"]}.get)
    assert found.unresolved == ("__x86_return_thunk",)
    assert np.flatnonzero(found.areas["text"].unknown).tolist() == [13, 14, 15, 16]


def test_symbols_of_freed_areas_are_unknown() -> None:
    module = small_module()
    module.section(".init.text", ALLOC | EXECUTE, b"\xc3" * 16)
    module.symbol("start", ".init.text")
    module.relocate(".rodata", 16, 1, "start")
    freed = ModulePlaces(PLACES.bases, 0, True, frozenset({"init_text"}))
    assert linked(module, freed).areas["rodata"].unknown[16:24].all()
    assert not linked(module).areas["rodata"].unknown.any()


def _with_list(*sections: bytes, listed: int = 0x1000) -> Any:
    """Return a reference in which the kernel names the sections that it makes read-only after init."""
    stored = {
        listed: b"".join(struct.pack("<Q", 0x2000 + 64 * number) for number in range(len(sections)))
        + bytes(8)
        + b"\xff" * 8  # what follows the list's end
    }
    stored |= {0x2000 + 64 * number: name.ljust(64, b"\0") for number, name in enumerate(sections)}
    symbol = SimpleNamespace(address=0x1000, size=8 * len(sections) + 16)
    return SimpleNamespace(
        symbols=SimpleNamespace(unique=lambda _: symbol if sections else None),
        read=lambda address, size: stored[address][:size],
    )


class Said:
    """A kernel since 6.4, and a module of it that says where its areas begin: if not given, nowhere."""

    def __init__(self, **bases: int) -> None:
        self.program = self
        self.reference = _with_list()
        self._bases = {f"MOD_{area.upper()}": base for area, base in bases.items()}

    def copy(self, _type: str, _address: int) -> Said:
        return self

    def __contains__(self, path: str) -> bool:
        return path == "mem"

    def constant(self, kind: str) -> str:
        return kind

    def integer(self, path: str) -> int:
        return self._bases.get(path.removeprefix("mem[").removesuffix("].base"), 0)

    def places(self) -> ModulePlaces:
        return module_places(cast(KernelProgram, self), cast(Module, SimpleNamespace(address=0)))


@pytest.mark.parametrize(
    ("reference", "later"),
    [
        (_with_list(), {".data..ro_after_init", "__jump_table"}),
        (_with_list(b"__jump_table", b".static_call_sites"), {"__jump_table", ".static_call_sites"}),
        (_with_list(b"elsewhere", listed=0x3000), {".data..ro_after_init", "__jump_table"}),
    ],
    ids=["no list", "a list", "a list that is not stored"],
)
def test_the_kernel_tells_what_it_makes_read_only_after_init(reference: Any, later: set[str]) -> None:
    said = Said(text=MODULE_AREA)
    said.reference = reference
    assert said.places().later == later


@pytest.mark.parametrize(("later", "calls", "data"), [(False, 0xA000, 0xA030), (True, 0x9000, 0xA000)])
def test_what_is_read_only_after_init_takes_no_room_among_data(later: bool, calls: int, data: int) -> None:
    """Else what follows it among the data of a module would be looked for too far on."""
    module = small_module()
    module.sections.insert(1, (".static_call_sites", ALLOC | WRITE, bytes(0x28), 8))
    bases = {"text": MODULE_AREA, "ro_after_init": MODULE_AREA + 0x9000, "data": MODULE_AREA + 0xA000}
    protected = frozenset({".static_call_sites"} if later else ())
    found = linked(module, ModulePlaces(bases, 0, False, later=protected))
    assert found.section(".static_call_sites")[0] == MODULE_AREA + calls
    assert found.section(".data")[0] == MODULE_AREA + data


def test_only_areas_of_init_may_be_freed() -> None:
    """A module that says that its data is nowhere would be excused all bytes that lead there."""
    module = small_module()
    module.symbol("something", ".data")
    module.relocate(".rodata", 16, ABSOLUTE64, "something")
    places = Said(text=MODULE_AREA, rodata=MODULE_AREA + 0x9000).places()
    assert places.freed == {"init_text", "init_rodata", "init_data"}
    assert not linked(module, places).areas["rodata"].unknown.any()


@pytest.mark.parametrize(
    ("kind", "offset"), [(99, 0), (4, 30), (1, 28)], ids=["unknown type", "beyond the end", "half beyond"]
)
def test_a_relocation_that_the_kernel_would_refuse_is_malformed(kind: int, offset: int) -> None:
    module = small_module()
    module.relocate(".text", offset, kind, "victim")
    with pytest.raises(MalformedError):
        linked(module)


def test_every_truncation_of_a_module_is_malformed_or_read_whole() -> None:
    data = small_module().build()
    for size in range(0, len(data) - 1, 7):
        with pytest.raises(MalformedError):
            read_relocatable(data[:size])


@given(st.integers(0, 2_000), st.binary(min_size=1, max_size=8))
@settings(max_examples=300, deadline=None)
def test_a_bent_module_never_raises_anything_else(at: int, junk: bytes) -> None:
    data = bytearray(small_module().build())
    at %= len(data)
    data[at : at + len(junk)] = junk[: len(data) - at]
    with contextlib.suppress(MalformedError):
        link_module(read_relocatable(bytes(data)), PLACES, KERNEL.get)


def test_module_files_are_those_that_the_reference_names(tmp_path: Path) -> None:
    data = small_module().build()
    entry = entry_of(data)
    path = module_files_beside(tmp_path / "one.reference")
    path.write_bytes(pack_module_files([(entry, data)]))
    assert path.name == "one.modules"
    assert ModuleFiles(path).read(entry) == data
    other = data.replace(b"writable", b"Writable")
    with pytest.raises(UnavailableError):
        ModuleFiles(path).read(entry_of(other))
    path.write_bytes(path.read_bytes().replace(entry.digest.encode(), entry_of(other).digest.encode()))
    with pytest.raises(ForgedError):
        ModuleFiles(path).read(entry_of(other))
    path.write_bytes(b"no archive")
    with pytest.raises(MalformedError):
        ModuleFiles(path)
    with pytest.raises(UnavailableError):
        ModuleFiles(tmp_path / "none.modules")


class Loaded:
    """A synthetic guest with the small module loaded as its module `first`."""

    def __init__(
        self,
        folder: Path,
        *,
        named: bool = True,
        module: ModuleBuilder | None = None,
        more: Sequence[str] = (),
    ) -> None:
        """`more` are names of modules that are alike, each as long as `first`."""
        module = module or small_module()
        # This kernel has no return thunk, and so no sites of that class: another function takes its place.
        symbols = [name for name, *_ in module.symbols]
        module.symbols[symbols.index("__x86_return_thunk")] = ("after_victim", None, 0)
        module.relocations = [
            (*row[:3], "after_victim" if row[3] == "__x86_return_thunk" else row[3], row[4])
            for row in module.relocations
            if row[0] != ".return_sites"
        ]
        module.sections = [section for section in module.sections if section[0] != ".return_sites"]
        data = module.build()
        files = [(entry_of(data), data)]
        for name in more:
            renamed = data.replace(b"name=first\0", b"name=" + name.encode() + b"\0")
            files.append((read_module(f"lib/modules/6.1.0/kernel/{name}.ko", renamed), renamed))
        reference = make_reference(modules=encode_modules([entry for entry, _ in files] if named else []))
        reference.path = folder / "kernel.reference"
        module_files_beside(reference.path).write_bytes(pack_module_files(files))
        self.guest = SyntheticGuest(reference=reference)
        self.places = {"first": (MODULE_AREA, MODULE_PHYSICAL)}
        for number, name in enumerate(more):
            place = MODULE_AREA + (number + 1) * 0x20_0000, 0x180_0000 + number * 0x1_0000
            self.places[name] = place
            self.guest.modules.append(self.guest.add_module(name, *place))
        for base, physical in self.places.values():
            self._lay_out(data, base, physical)
        self.seen: Guest = self.guest.open()

    def _lay_out(self, data: bytes, base: int, physical: int) -> None:
        known = {"victim": KERNEL["victim"], "after_victim": THUNK}
        places = ModulePlaces({"text": base, "init_text": base + (1 << 24)}, 0, True)
        areas = link_module(read_relocatable(data), places, known.get).areas
        for offset, name in ((0, "text"), (4096, "rodata"), (8192, "data")):
            self.guest.poke(physical + offset, areas[name].expected.tobytes())
            if offset:
                self.guest.map(base + offset, physical + offset, 4096)

    def look(self, now: float = 0.0) -> dict[str, Any]:
        fact = collect(self.seen, ["module_code"], now=now)["module_code"].to_json()
        assert "unavailable" not in fact, fact
        return fact

    def verdict(self, now: float = 0.0) -> str:
        (module,) = self.look(now)["modules"]
        return str(module["verdict"])

    def odd(self) -> list[tuple[str, str]]:
        """Return name and verdict of each module that is not as packaged."""
        told = [(module["name"], module["verdict"]) for module in self.look()["modules"]]
        return [each for each in told if each[1] != "as packaged"]


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return Loaded(tmp_path)


def test_a_module_as_packaged_is_told_so_look_after_look(loaded: Loaded) -> None:
    for _ in range(3):
        fact = loaded.look()
        assert [module["verdict"] for module in fact["modules"]] == ["as packaged"]
        assert fact["compared_bytes"] == 8192 and fact["differences"] == []


def test_marks_of_a_module_are_those_of_now(loaded: Loaded) -> None:
    for taints in (0, 1 << 12, 0, 1 << 13):
        loaded.guest.word(loaded.guest.modules[0] + 136, taints)
        (module,) = loaded.look()["modules"]
        assert (module["verdict"], module["taints"]) == ("as packaged", taints)


def test_more_new_modules_than_one_look_links_are_left_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(tmp_path, more=("other", "third"))
    size = len(small_module().build())
    monkeypatch.setattr(references, "_MOST_WORK", 3 * size)
    verdicts = []
    for _ in range(6):
        modules = loaded.look()["modules"]
        assert all("than one look links" in each["reason"] for each in modules if each["verdict"] == "unread")
        verdicts.append(sorted(each["verdict"] for each in modules))
        assert set(verdicts[-1]) <= {"unread", "as packaged"}
    assert verdicts[0].count("unread") > 0
    assert verdicts[-1] == ["as packaged"] * 3


def test_a_module_that_is_listed_a_thousand_times_is_not_kept_as_often(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each says that it lies elsewhere, and would be linked for its own place."""
    for number in range(1, 8):
        base, physical = MODULE_AREA + number * 0x20_0000, 0x180_0000 + number * 0x1_0000
        loaded.guest.add_module("first", base, physical)
    assert [name for name, _ in loaded.odd()] == ["first"] * 7
    judge = loaded.seen.module_judge
    size = judge._references.size("first")
    assert judge._kept == 8 * size
    judge.forget_others(set())
    assert (judge.known, judge._kept) == ({}, 0)
    monkeypatch.setattr(judge_module, "_MOST_KEPT", 3 * size)
    told = loaded.look()["modules"]
    assert len(judge.known) == 3
    assert sum("than are kept" in module["reason"] for module in told) == 5
    assert not judge._references._parsed.keys() - {"first"}


def test_a_function_of_a_module_as_packaged_is_vouched_for_until_the_module_is_changed(
    loaded: Loaded,
) -> None:
    outside = loaded.seen.outside
    function, *_ = functions_of(linked(small_module())).tolist()
    asked = {function, function + 1, MODULE_AREA + 0x8000}
    assert outside.functions_among(asked) == {function}
    before = loaded.guest.poke(MODULE_PHYSICAL + 20, b"\xf4")
    assert not outside.functions_among(asked)
    loaded.guest.poke(MODULE_PHYSICAL + 20, before)
    assert outside.functions_among(asked) == {function}


def test_a_module_that_was_linked_anew_is_vouched_for_by_how_it_is_linked_now(loaded: Loaded) -> None:
    """What was found of it when it was linked with others is no word on how it must be by now."""
    function, *_ = functions_of(linked(small_module())).tolist()
    judge = loaded.seen.module_judge
    for _ in range(2):
        assert loaded.verdict() == "as packaged"
    ((key, known),) = judge.known.items()
    assert known.rodata is not None
    elsewhere = replace(known.rodata, expected=known.rodata.expected ^ np.uint8(1))
    judge.known[key] = replace(known, rodata=elsewhere)
    assert not loaded.seen.outside.functions_among({function})


def test_nobody_vouches_for_a_module_of_no_package(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, named=False)
    assert not loaded.seen.outside.functions_among({MODULE_AREA + offset for offset in range(32)})


@pytest.mark.parametrize("offset", [0, 20, 31, 32, 4095], ids=["entry", "code", "end", "padding", "last"])
def test_a_changed_byte_of_code_is_found_wherever_it_is(loaded: Loaded, offset: int) -> None:
    loaded.look()
    before = loaded.guest.poke(MODULE_PHYSICAL + offset, b"\xf4")
    fact = loaded.look()
    assert [run["address"] for run in fact["differences"]] == [hex(MODULE_AREA + offset)]
    assert fact["modules"][0]["verdict"] == "changed"
    loaded.guest.poke(MODULE_PHYSICAL + offset, before)
    assert loaded.verdict() == "as packaged"


def test_changed_read_only_data_is_found(loaded: Loaded) -> None:
    loaded.guest.poke(MODULE_PHYSICAL + 4096 + 5, b"X")
    (run,) = loaded.look()["differences"]
    assert (run["address"], run["found"]) == (hex(MODULE_AREA + 4096 + 5), b"X".hex())


def test_a_module_that_the_reference_does_not_name_is_told_with_its_digest(tmp_path: Path) -> None:
    (module,) = Loaded(tmp_path, named=False).look()["modules"]
    assert module["verdict"] == "unknown"
    assert len(module["digest"]) == 64


def test_of_unknown_modules_only_so_many_bytes_are_hashed_in_one_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guest lists as many modules as it likes, each as long as it says, over the same few pages."""
    loaded = Loaded(tmp_path, named=False, more=("other", "third"))
    hashed: list[int] = []
    real = AddressSpace.read

    def counted(space: AddressSpace, address: int, size: int) -> bytes:
        hashed.append(size if MODULE_AREA <= address < MODULE_AREA + 0x1_0000_0000 else 0)
        return real(space, address, size)

    monkeypatch.setattr(AddressSpace, "read", counted)
    monkeypatch.setattr(digests, "_MOST_HASHED", 2 * 4096)
    for _ in range(2):
        hashed.clear()
        modules = loaded.look()["modules"]
        assert [module["verdict"] for module in modules] == ["unknown"] * 3
        assert sum(1 for module in modules if module["digest"]) == 2
        (told,) = (module["reason"] for module in modules if not module["digest"])
        assert "than one look hashes" in told
        assert sum(hashed) == 2 * 4096


def test_code_of_an_unknown_module_that_is_not_all_there_has_no_digest(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, named=False)
    loaded.guest.poke(loaded.guest.modules[0] + 144 + 12, (0x10_0000).to_bytes(4, "little"))
    (module,) = loaded.look()["modules"]
    assert (module["verdict"], module["digest"]) == ("unknown", "")
    assert module["reason"] == "a page of its code is missing"


def test_a_module_that_claims_more_code_than_its_file_has_is_changed(loaded: Loaded) -> None:
    module = loaded.guest.modules[0]
    loaded.guest.poke(module + 144 + 12, (8192).to_bytes(4, "little"))
    (told,) = loaded.look()["modules"]
    assert told["verdict"] == "changed"
    assert "4096 bytes of code more" in told["reason"]


def test_text_that_a_module_has_for_init_is_compared_for_as_long_as_it_is_there(tmp_path: Path) -> None:
    """A module that is live has none for more than moments; whoever forges some owns its pages."""
    module = small_module()
    module.section(".init.text", ALLOC | EXECUTE, b"\x90" * 15 + b"\xc3")
    loaded = Loaded(tmp_path, module=module)
    assert loaded.verdict() == "as packaged"
    init, physical = MODULE_AREA + 0x10_0000, 0x190_0000
    loaded.guest.map(init, physical, 4096, executable=True)
    loaded.guest.poke(physical, (b"\x90" * 15 + b"\xc3").ljust(4096, b"\0"))
    loaded.guest.poke(loaded.guest.modules[0] + 216, struct.pack("<QII", init, 4096, 4096))
    for _ in range(2):
        assert loaded.verdict() == "as packaged"
    for offset in (3, 4000):
        before = loaded.guest.poke(physical + offset, b"\xf4")
        fact = loaded.look()
        assert [run["address"] for run in fact["differences"]] == [hex(init + offset)]
        assert fact["modules"][0]["verdict"] == "changed"
        loaded.guest.poke(physical + offset, before)
    assert loaded.verdict() == "as packaged"


@pytest.mark.parametrize("base", [(1 << 64) - 4096, 0x1000, 0xFFFF_8880_0000_0000])
def test_a_module_that_claims_to_lie_where_no_module_is_is_not_read(loaded: Loaded, base: int) -> None:
    loaded.guest.word(loaded.guest.modules[0] + 144, base)
    (told,) = loaded.look()["modules"]
    assert told["verdict"] == "unread"
    assert "where no module is" in told["reason"]


def test_a_module_that_claims_to_lie_at_the_very_end_is_told_what_it_is(tmp_path: Path) -> None:
    """What it had for init is laid out where it is in nobody's way: there is no room behind it."""
    module = small_module()
    module.section(".init.text", ALLOC | EXECUTE, b"\xc3" * 16)
    module.symbol("start", ".init.text", 2)
    loaded = Loaded(tmp_path, module=module)
    assert loaded.verdict() == "as packaged"
    loaded.guest.word(loaded.guest.modules[0] + 144, LAST_CODE_ADDRESS - 4095)
    assert loaded.verdict() in ("changed", "unread")


def test_being_loaded_is_an_excuse_for_seconds_only(loaded: Loaded) -> None:
    loaded.guest.poke(loaded.guest.modules[0], (1).to_bytes(4, "little"))
    loaded.guest.poke(MODULE_PHYSICAL, b"\xf4")
    assert [loaded.verdict(float(now)) for now in range(7)][:5] == ["in transition"] * 5
    assert loaded.verdict(7.0) == "changed"


def test_a_module_cannot_evade_by_saying_something_else_of_itself_in_each_look(loaded: Loaded) -> None:
    """It says that it is being loaded, and each time that it is of another size."""
    module = loaded.guest.modules[0]
    loaded.guest.poke(module, (1).to_bytes(4, "little"))
    loaded.guest.poke(MODULE_PHYSICAL, b"\xf4")
    verdicts = []
    for now in range(8):
        loaded.guest.poke(module + 144 + 8, (8192 + 4096 * now).to_bytes(4, "little"))
        verdicts.append(loaded.verdict(float(now)))
    assert verdicts[:5] == ["in transition"] * 5
    assert verdicts[7] == "changed"


def test_modules_cannot_evade_by_taking_turns(tmp_path: Path) -> None:
    """One says that it is being loaded while the other is left alone, and each for moments only."""
    loaded = Loaded(tmp_path, more=("other",))
    loaded.guest.poke(MODULE_PHYSICAL, b"\xf4")
    loaded.guest.poke(loaded.places["other"][1], b"\xf4")
    found = []
    for now in range(0, 400, 10):
        one, two = loaded.guest.modules if now % 20 else reversed(loaded.guest.modules)
        loaded.guest.poke(one, (1).to_bytes(4, "little"))
        loaded.guest.poke(two, (0).to_bytes(4, "little"))
        verdicts = sorted(module["verdict"] for module in loaded.look(float(now))["modules"])
        found.append(verdicts == ["changed", "changed"])
    assert found.index(True) == 31


@pytest.fixture
def leaving(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """A module with foreign code that is on the list when a look begins, and not when it ends."""
    looks = itertools.count()
    monkeypatch.setattr(
        module_look, "listed_modules", lambda program: [] if next(looks) % 2 else listed_modules(program)
    )
    loaded.guest.poke(MODULE_PHYSICAL, b"\xf4")
    return loaded


def test_a_module_that_leaves_while_it_is_compared_is_no_finding(leaving: Loaded) -> None:
    (told,) = leaving.look()["modules"]
    assert (told["verdict"], told["reason"]) == ("in transition", "it was unloaded meanwhile")


def test_a_module_whose_name_was_read_after_it_had_left_is_no_finding(leaving: Loaded) -> None:
    leaving.guest.poke(leaving.guest.modules[0] + 24, b"left\0")
    (told,) = leaving.look()["modules"]
    assert (told["verdict"], told["reason"]) == ("in transition", "it was unloaded meanwhile")


def test_leaving_at_every_look_is_an_excuse_for_seconds_only(leaving: Loaded) -> None:
    assert [leaving.verdict(float(now)) for now in range(5)] == ["in transition"] * 5
    assert leaving.verdict(7.0) == "changed"


@pytest.fixture
def returning(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """A module whose memory holds something else when it is compared, and is what it was soon after."""
    looks = itertools.count()
    before = loaded.guest.poke(MODULE_PHYSICAL, b"\xf4")

    def arrives(program: KernelProgram) -> list[Module]:
        if next(looks):
            loaded.guest.poke(MODULE_PHYSICAL, before)
        return listed_modules(program)

    monkeypatch.setattr(module_look, "listed_modules", arrives)
    return loaded


def test_a_module_that_left_and_came_again_while_it_was_compared_is_no_finding(returning: Loaded) -> None:
    """It lies where it lay, and so cannot be told from the one that was read: it is looked at once more."""
    (module,) = returning.look()["modules"]
    assert (module["verdict"], module["reason"]) == ("as packaged", "")


def test_in_a_guest_that_is_paused_nothing_is_looked_at_again(returning: Loaded) -> None:
    returning.seen = returning.seen.at_rest()
    assert returning.verdict() == "changed"


def test_a_module_is_linked_anew_when_what_it_depends_on_has_moved(loaded: Loaded) -> None:
    """Its own place does not tell: the same module at the same place calls another address by then."""
    judge = loaded.seen.module_judge
    loaded.look()
    (known,) = judge.known.values()
    gone = ("a module that was there when it was linked",)
    moved = replace(known, with_modules=frozenset({gone}))
    judge.known.update(dict.fromkeys(judge.known, moved))
    assert loaded.verdict() == "as packaged"
    (linked,) = judge.known.values()
    assert linked is not moved and linked.with_modules == frozenset()


def test_code_that_is_not_mapped_is_no_module_as_packaged(loaded: Loaded) -> None:
    base = loaded.guest.modules[0] + 144
    loaded.guest.poke(base, struct.pack("<Q", MODULE_AREA + 0x40_0000))
    assert loaded.verdict() != "as packaged"


def module_with_a_static_call() -> ModuleBuilder:
    """The small module, with a static call of its own function through a key of its own."""
    module = small_module()
    name, flags, code, align = module.sections[0]
    module.sections[0] = (name, flags, code[:17] + bytes.fromhex("e800000000") + code[22:], align)
    module.section(".data..key", ALLOC | WRITE, bytes(8))
    module.section(".static_call_sites", ALLOC | WRITE, bytes(8), align=4)
    module.symbol("key", ".data..key")
    module.relocate(".text", 18, PLT32, "entry", -4)
    module.relocate(".data..key", 0, ABSOLUTE64, "entry")
    module.relocate(".static_call_sites", 0, PC32, "entry", 17)
    module.relocate(".static_call_sites", 4, PC32, "key")
    return module


def test_a_static_call_of_a_modules_own_function_is_as_packaged(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, module=module_with_a_static_call())
    (module,) = loaded.look()["modules"]
    assert module["verdict"] == "as packaged", loaded.look()["differences"]
    key = MODULE_PHYSICAL + 8192 + 16  # behind .data, aligned
    assert loaded.guest.poke(key, struct.pack("<Q", MODULE_AREA + 1)) == struct.pack("<Q", MODULE_AREA)
    (difference,) = loaded.look()["differences"]
    assert difference["site"] == "static_call"


STATIC_CALL, OTHER_CALL = MODULE_PHYSICAL + 17, MODULE_PHYSICAL + 32


def module_with_two_static_calls() -> ModuleBuilder:
    """That module, with a second site of the same key."""
    module = module_with_a_static_call()
    module.sections = [
        (name, flags, bytes(16) if name == ".static_call_sites" else data, align)
        for name, flags, data, align in module.sections
    ]
    name, flags, code, align = module.sections[0]
    module.sections[0] = (name, flags, code.ljust(32, b"\xcc") + bytes.fromhex("e800000000"), align)
    module.relocate(".text", 33, PLT32, "entry", -4)
    module.relocate(".static_call_sites", 8, PC32, "entry", 32)
    module.relocate(".static_call_sites", 12, PC32, "key")
    return module


def test_a_site_of_a_module_may_be_half_changed_for_seconds(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, module=module_with_a_static_call())
    assert loaded.verdict() == "as packaged"
    before = loaded.guest.poke(STATIC_CALL, b"\xcc")
    assert [loaded.verdict(float(now)) for now in range(7)][:5] == ["in transition"] * 5
    assert loaded.verdict(7.0) == "changed"
    (difference,) = loaded.look(8.0)["differences"]
    assert (difference["site"], difference["address"]) == ("static_call", hex(MODULE_AREA + 17))
    loaded.guest.poke(STATIC_CALL, before)
    assert loaded.verdict(9.0) == "as packaged"


def test_it_may_for_longer_while_the_kernel_changes_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Loaded(tmp_path, module=module_with_a_static_call())
    monkeypatch.setattr(module_look, "is_changing_code", lambda program: True)
    loaded.guest.poke(STATIC_CALL, b"\xcc")
    assert [loaded.verdict(float(now)) for now in range(70)].index("changed") == 64


def test_sites_that_are_changed_one_after_the_other_are_no_finding(tmp_path: Path) -> None:
    """As those of a large module are while it is loaded, for as long as that takes."""
    loaded = Loaded(tmp_path, module=module_with_two_static_calls())
    assert loaded.verdict() == "as packaged", loaded.look()
    for now in range(20):
        place = STATIC_CALL if now // 4 % 2 else OTHER_CALL
        before = loaded.guest.poke(place, b"\xcc")
        assert loaded.verdict(float(now)) == "in transition"
        loaded.guest.poke(place, before)


def test_a_site_that_is_half_changed_hides_no_other_code(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, module=module_with_a_static_call())
    loaded.guest.poke(STATIC_CALL, b"\xcc")
    loaded.guest.poke(MODULE_PHYSICAL, b"\xf4")
    (difference,) = loaded.look()["differences"]
    assert (loaded.verdict(), difference["address"]) == ("changed", hex(MODULE_AREA))


@pytest.mark.parametrize("anew", [True, False], ids=["anew", "steady"])
@pytest.mark.parametrize("offset", [0, 20, 4095, 4096 + 5], ids=["entry", "code", "padding", "data"])
def test_of_many_modules_the_one_that_is_odd_is_told(tmp_path: Path, offset: int, anew: bool) -> None:
    """They are judged at once, and each for itself."""
    loaded = Loaded(tmp_path, more=("other", "third", "fifth"))
    assert [loaded.odd() for _ in range(2)] == [[], []]
    for name, (_, physical) in loaded.places.items():
        before = loaded.guest.poke(physical + offset, b"\xf4")
        if anew:
            loaded.seen.forget_verified()
        assert loaded.odd() == [(name, "changed")]
        loaded.guest.poke(physical + offset, before)
        assert loaded.odd() == []


def test_pages_that_hold_what_they_held_are_compared_where_what_is_legal_has_changed(tmp_path: Path) -> None:
    """A module is judged by itself between two looks: what was found legal of it is found anew."""
    loaded = Loaded(tmp_path, more=("other",))
    assert [loaded.odd() for _ in range(3)] == [[], [], []]
    joined = loaded.seen.module_judge._joined
    assert joined is not None and joined._as_before(loaded.seen)
    ((content, _), *_) = joined._texts.values()
    content.forget()
    content.begin()
    assert not joined._as_before(loaded.seen)
    assert loaded.odd() == []


def test_a_key_of_one_of_many_modules_is_its_own(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, module=module_with_a_static_call(), more=("other", "third"))
    assert [loaded.odd() for _ in range(2)] == [[], []]
    (first, _), (_, physical) = loaded.places["first"], loaded.places["other"]
    # A function of another module, though it is as packaged, is none that was linked, nor the kernel's own.
    loaded.guest.poke(physical + 8192 + 16, struct.pack("<Q", first + 1))
    assert loaded.odd() == [("other", "changed")]


def test_modules_come_and_go_between_looks(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, more=("other", "third"))
    loaded.look()
    _, physical = loaded.places["third"]
    node = DIRECT_MAP + loaded.guest.modules[1] + 8
    before, after = (loaded.guest.ram[node - DIRECT_MAP + at :][:8] for at in (8, 0))
    place = loaded.guest.resolve(int.from_bytes(before, "little"))
    loaded.guest.poke(place, bytes(after))
    assert [module["name"] for module in loaded.look()["modules"]] == ["first", "third"]
    loaded.guest.poke(physical + 20, b"\xf4")
    assert loaded.odd() == [("third", "changed")]
    loaded.guest.poke(place, struct.pack("<Q", node))
    assert [module["name"] for module in loaded.look()["modules"]] == ["first", "other", "third"]
    assert loaded.odd() == [("third", "changed")]


def test_keys_are_asked_in_every_look_though_no_byte_of_code_changed(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, module=module_with_a_static_call())
    assert [loaded.verdict() for _ in range(3)] == ["as packaged"] * 3
    key = MODULE_PHYSICAL + 8192 + 16
    before = loaded.guest.poke(key, struct.pack("<Q", MODULE_AREA + 1))
    assert loaded.verdict() == "changed"
    loaded.guest.poke(key, before)
    assert loaded.verdict() == "as packaged"


def test_code_that_is_again_what_it_was_before_is_held_against_what_is_legal_now(tmp_path: Path) -> None:
    """What was legal once, to the byte, is not what its key asks for by now."""
    loaded = Loaded(tmp_path, module=module_with_a_static_call(), more=("other",))
    key, nothing = MODULE_PHYSICAL + 8192 + 16, bytes.fromhex("0f1f440000")
    function, call = loaded.guest.poke(key, bytes(8)), loaded.guest.poke(STATIC_CALL, nothing)
    assert [loaded.odd() for _ in range(3)] == [[], [], []]
    loaded.guest.poke(key, function)
    loaded.guest.poke(STATIC_CALL, call)
    assert loaded.odd() == []
    loaded.guest.poke(STATIC_CALL, nothing)
    assert [name for name, _ in loaded.odd()] == ["first"]
    loaded.guest.poke(STATIC_CALL, call)
    assert [loaded.odd() for _ in range(3)] == [[], [], []]


def test_code_that_is_mapped_elsewhere_is_compared_there(tmp_path: Path) -> None:
    """A changed copy, in place of pages that nobody has touched."""
    loaded = Loaded(tmp_path, more=("other", "third"))
    assert [loaded.odd() for _ in range(3)] == [[], [], []]
    base, physical = loaded.places["other"]
    copy = bytearray(loaded.guest.ram[physical : physical + 4096])
    loaded.guest.poke(0x1F0_0000, bytes(copy))
    loaded.guest.map(base, 0x1F0_0000, 4096, executable=True)
    assert [loaded.odd() for _ in range(2)] == [[], []]
    loaded.guest.poke(0x1F0_0000 + 20, b"\xf4")
    assert loaded.odd() == [("other", "changed")]


def test_a_key_that_cannot_be_read_is_no_module_as_packaged(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, module=module_with_a_static_call())
    loaded.look()
    loaded.guest.map(MODULE_AREA + 8192, (1 << 40) + MODULE_PHYSICAL, 4096)
    (module,) = loaded.look()["modules"]
    assert module["verdict"] == "unread" and "static_call" in module["reason"]


def module_with_a_trampoline() -> ModuleBuilder:
    """The small module, with a static call of its own that is called through a trampoline."""
    module = small_module()
    module.section(".static_call.text", ALLOC | EXECUTE, bytes.fromhex("e90000000090 0f b9 cc"), align=8)
    module.section(".data..key", ALLOC | WRITE, bytes(8))
    module.symbol("__SCT__own", ".static_call.text")
    module.symbol("__SCK__own", ".data..key")
    module.relocate(".static_call.text", 1, PLT32, "entry", -4)
    module.relocate(".data..key", 0, ABSOLUTE64, "entry")
    return module


def test_a_trampoline_of_a_module_leads_where_its_key_does(tmp_path: Path) -> None:
    loaded = Loaded(tmp_path, module=module_with_a_trampoline())
    trampoline, key = MODULE_PHYSICAL + 32, MODULE_PHYSICAL + 8192 + 16
    for _ in range(2):
        assert loaded.verdict() == "as packaged", loaded.look()["differences"]
    elsewhere = distance(MODULE_AREA + 7, MODULE_AREA + 33)
    before = loaded.guest.poke(trampoline + 1, elsewhere)
    (difference,) = loaded.look()["differences"]
    assert difference["site"] == "static_call_trampoline"
    assert difference["address"] == hex(MODULE_AREA + 32)
    loaded.guest.poke(trampoline + 1, before)
    assert loaded.verdict() == "as packaged"
    loaded.guest.poke(trampoline + 1, elsewhere)
    loaded.guest.poke(key, struct.pack("<Q", MODULE_AREA + 7))
    assert loaded.verdict() == "changed"


def test_what_was_found_legal_does_not_count_once_it_is_forgotten(loaded: Loaded) -> None:
    """Judged all at once or by itself, the module is held against its file."""
    loaded.look()
    (known,) = loaded.seen.module_judge.known.values()
    assert known.code is not None
    known.code[1].accepted[20] = 0xF4
    loaded.guest.poke(MODULE_PHYSICAL + 20, b"\xf4")
    assert loaded.verdict() == "as packaged"  # as it was found: that is what a memory is for
    loaded.seen.forget_verified()
    assert loaded.verdict() == "changed"


def test_without_module_files_there_is_no_such_fact() -> None:
    fact = collect(SyntheticGuest().open(), ["module_code"], now=0)["module_code"].to_json()
    assert "module files" in fact["unavailable"]


def test_random_module_structures_never_raise(loaded: Loaded) -> None:
    draw = random.Random(3)
    for _ in range(40):
        start = loaded.guest.modules[0] + draw.randrange(24, 300)
        before = loaded.guest.poke(start, draw.randbytes(draw.randrange(1, 16)))
        collect(loaded.seen, ["module_code"], now=0)["module_code"].to_json()
        loaded.guest.poke(start, before)
    assert loaded.verdict() == "as packaged"
