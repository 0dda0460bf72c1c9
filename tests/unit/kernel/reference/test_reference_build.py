"""Building a reference image from a truthful tiny kernel, and refusing bent ones."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from affiant.kernel.reference import ReferenceImage, SiteClass, build_reference
from affiant.model.errors import MalformedError, SetupError
from tests.unit.kernel.reference import tiny_files, tiny_kernel
from tests.unit.kernel.reference.test_kernel_config import DEBIAN, config
from tests.unit.kernel.reference.tiny_kernel import DATA, INIT, LAYOUTS, RODATA, TEXT, TinyKernel

CONFIG = config(*DEBIAN)


def build(tmp_path: Path, data: bytes, **options: Path) -> ReferenceImage:
    path = tmp_path / "input"
    path.write_bytes(data)
    return ReferenceImage.load(build_reference(path, **options))


@pytest.mark.parametrize("compression", ["gzip", "xz", "zstd", "lz4"])
def test_kernel_of_every_compression_is_read(tmp_path: Path, compression: str) -> None:
    image = build(tmp_path, TinyKernel().bzimage(compression))
    assert image.release == tiny_files.RELEASE
    assert image.banner == tiny_kernel.BANNER
    assert bytes(image.section(".data")[1]) == b"data" * 64


def test_reference_says_what_measured_boot_measures(tmp_path: Path) -> None:
    file = TinyKernel().bzimage()
    image = build(tmp_path, file)
    assert image.kernel_file_digest == hashlib.sha256(file).digest()
    optional = 0x40 + 24
    unsigned = file[: optional + 64] + file[optional + 68 : optional + 144] + file[optional + 152 :]
    assert image.authenticode_digest == hashlib.sha256(unsigned).digest()
    assert image.build_id == bytes(range(20))


def test_kernel_file_without_pe_header_has_no_authenticode_digest(tmp_path: Path) -> None:
    assert build(tmp_path, TinyKernel().bzimage(pe=False)).authenticode_digest is None


def test_same_kernel_gives_the_same_bytes(tmp_path: Path) -> None:
    package = TinyKernel().package()
    one, two = tmp_path / "one.deb", tmp_path / "another-name"
    one.write_bytes(package)
    two.write_bytes(package)
    assert build_reference(one) == build_reference(two)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("percpu", [True, False])
def test_symbols_of_every_kallsyms_layout(tmp_path: Path, layout: str, percpu: bool) -> None:
    if layout == "in-place" and percpu:
        percpu = False  # offsets from one's own place came after per-CPU data at zero had gone
    kernel = TinyKernel(layout=layout, percpu=percpu)
    image = build(tmp_path, kernel.bzimage())
    expected = sorted(kernel.symbols, key=lambda symbol: symbol[0])
    assert [(s.address, s.type, s.name) for s in image.symbols] == expected


def test_symbols_are_found_by_name_and_by_address(tmp_path: Path) -> None:
    symbols = build(tmp_path, TinyKernel().bzimage()).symbols
    assert [symbol.address for symbol in symbols.named("twice")] == [TEXT + 0x640, TEXT + 0x680]
    assert symbols.unique("twice") is None
    banner = symbols.unique("linux_banner")
    assert banner is not None and banner.address == RODATA + 0x100
    assert banner.size == 0x800
    assert symbols.named("nothing") == [] and "nothing" not in symbols
    found = symbols.at(TEXT + 0x645)
    assert found is not None and (found[0].name, found[1]) == ("twice", 5)
    first = symbols.at(TEXT)
    assert first is not None and first[0].name == "_text"
    percpu = symbols.at(0x44)
    assert percpu is not None and (percpu[0].name, percpu[1]) == ("current_task", 4)
    assert symbols.at(TEXT - 1) is None
    assert symbols.at(-1) is None and symbols.at(1 << 64) is None
    assert symbols.at(DATA + 0x2000) is None


def test_per_cpu_data_linked_at_zero_is_found_where_it_is_loaded(tmp_path: Path) -> None:
    image = build(tmp_path, TinyKernel().bzimage())
    address, data = image.section(".data..percpu")
    assert address == tiny_kernel.PERCPU_LOAD and len(data) == 0x100


def test_sites_of_every_class(tmp_path: Path) -> None:
    image = build(tmp_path, TinyKernel().bzimage())
    found = {
        (SiteClass(int(site["kind"])).name, int(site["address"]) - TEXT, int(site["length"]))
        for site in image.sites
    }
    assert found == {
        ("ALTERNATIVE", 0x380, 6),
        ("RETPOLINE", 0x300, 5),
        ("RETPOLINE", 0x310, 6),
        ("RETURN", 0x308, 5),
        ("CALL", 0x360, 5),
        ("CALL_PADDING", 0x420 - 9, 9),
        ("ENDBR", 0x370, 4),
        ("SMP_LOCK", 0x350, 1),
        ("JUMP_LABEL", 0x320, 2),
        ("JUMP_LABEL", 0x330, 5),
        ("STATIC_CALL", 0x308, 5),
        ("STATIC_CALL_TRAMPOLINE", 0x1800, 5),
        ("FTRACE", 0x340, 5),
        ("FTRACE_CALLER", 0x1900, 5),
        ("RUNTIME_SHIFT", 0x390, 1),
        ("RUNTIME_POINTER", 0x3A0, 8),
    }
    assert image.metadata.unknown_sections == ()
    between = image.sites_between(TEXT + 0x320, TEXT + 0x330)
    assert [int(address) - TEXT for address in between["address"]] == [0x320]


def test_site_leads_to_its_raw_table_entry(tmp_path: Path) -> None:
    image = build(tmp_path, TinyKernel().bzimage())
    ftrace = image.sites[image.sites["kind"] == SiteClass.FTRACE][0]
    entry = image.table_entries(int(ftrace["table"]))[int(ftrace["entry"])]
    assert int(entry["site"]) == TEXT + 0x340 and int(ftrace["entry"]) == 1
    alternative = image.sites[image.sites["kind"] == SiteClass.ALTERNATIVE][0]
    entry = image.table_entries(int(alternative["table"]))[0]
    assert (int(entry["feature"]), int(entry["length"]), int(entry["replacement_length"])) == (3, 6, 2)
    trampoline = image.sites[image.sites["kind"] == SiteClass.STATIC_CALL_TRAMPOLINE][0]
    assert len(image.table_entries(int(trampoline["table"]))) == 0


def test_older_layout_of_alternatives_and_paravirt_sites(tmp_path: Path) -> None:
    kernel = TinyKernel()
    replacement = kernel.address_of(".altinstr_replacement")
    kernel.tables[".altinstructions"] = kernel.alternatives([(TEXT + 0x380, replacement, 7, 4, 2)], size=12)
    kernel.tables[".parainstructions"] = struct.pack("<QBB6x", TEXT + 0x3C0, 1, 7)
    image = build(tmp_path, kernel.bzimage())
    layouts = {table.name: table.layout for table in image.tables}
    assert layouts[".altinstructions"] == "alternative-12"
    paravirt = image.sites[image.sites["kind"] == SiteClass.PARAVIRT]
    assert [(int(s["address"]) - TEXT, int(s["length"])) for s in paravirt] == [(0x3C0, 7)]


def test_slide_moves_what_the_relocations_name_and_nothing_else(tmp_path: Path) -> None:
    kernel = TinyKernel()
    image = build(tmp_path, kernel.bzimage())
    slide = 0x1200000
    text = image.relocated_text(slide)
    expected = bytearray(kernel.text)
    expected[0x10:0x14] = struct.pack("<I", (RODATA + 0x100 + slide) & 0xFFFFFFFF)
    expected[0x20:0x24] = struct.pack("<i", -0x1000 - slide)
    assert text.tobytes() == bytes(expected)
    rodata = image.relocated_section(".rodata", slide)
    linked = np.frombuffer(image.section(".rodata")[1], dtype=np.uint8)
    assert set(np.flatnonzero(rodata != linked)) <= set(range(0x800, 0x810))
    assert struct.unpack("<QQ", rodata[0x800:0x810].tobytes()) == (TEXT + 0x100 + slide, TEXT + 0x200 + slide)
    assert image.relocated_text(0).tobytes() == bytes(kernel.text)


@pytest.mark.parametrize("slide", [-0x200000, 0x1000, 1 << 30])
def test_impossible_slide_is_misuse(tmp_path: Path, slide: int) -> None:
    with pytest.raises(ValueError, match="no KASLR slide"):
        build(tmp_path, TinyKernel().bzimage()).relocated_text(slide)


def test_kernel_without_inverse_relocations(tmp_path: Path) -> None:
    image = build(tmp_path, TinyKernel(inverse32=None).bzimage())
    assert len(image.relocations.inverse32) == 0
    assert list(image.relocations.absolute32) == [TEXT + 0x10]


def test_types_are_indexed_by_name(tmp_path: Path) -> None:
    image = build(tmp_path, TinyKernel().bzimage())
    member = image.types.member("tiny", "e.d")
    assert member is not None and member.offset == 8
    assert bytes(image.btf) == tiny_kernel.tiny_btf()


@pytest.mark.parametrize("compression", ["xz", "zstd", "gzip", "none"])
def test_package_of_every_compression(tmp_path: Path, compression: str) -> None:
    image = build(tmp_path, TinyKernel().package(compression=compression))
    assert image.package is not None
    assert (image.package.name, image.package.version) == ("linux-image-tiny", "6.1-1")
    assert [module.name for module in image.modules] == ["other", "tiny"]
    module = image.modules[1]
    assert module.digest == hashlib.sha256(tiny_files.module("tiny")).hexdigest() != module.file_digest
    assert (module.text_size, module.code_size, module.signed) == (48, 56, True)
    assert (module.srcversion, module.vermagic) == ("0123456789ABCDEF", f"{tiny_files.RELEASE} SMP")


def test_modules_of_a_second_package(tmp_path: Path) -> None:
    second = tmp_path / "modules.deb"
    path = f"./usr/lib/modules/{tiny_files.RELEASE}/kernel/apart.ko"
    second.write_bytes(tiny_files.deb({path: tiny_files.module("apart")}))
    image = build(tmp_path, TinyKernel().package(modules=()), modules=second)
    assert [module.path for module in image.modules] == [path.removeprefix("./")]


def configuration(tmp_path: Path, path: str, *, version: str = "6.1-1") -> Path:
    """A package with a configuration alone, of a kernel that locks down and verifies modules."""
    control = f"Package: linux-base-tiny\nVersion: {version}\nArchitecture: amd64\nDescription: tiny\n"
    apart = tmp_path / "configuration.deb"
    apart.write_bytes(tiny_files.deb({path: CONFIG}, control=control))
    return apart


def policy(image: ReferenceImage) -> tuple[bool | None, bool | None]:
    return image.metadata.locks_down, image.metadata.verifies_modules


def test_configuration_of_another_package(tmp_path: Path) -> None:
    kernel = TinyKernel().package()
    assert policy(build(tmp_path, kernel)) == (None, None)
    apart = configuration(tmp_path, f"./usr/lib/modules/{tiny_files.RELEASE}/config")
    assert policy(build(tmp_path, kernel, configuration=apart)) == (True, True)


def test_configuration_of_another_release_does_not_count(tmp_path: Path) -> None:
    for path in ("./usr/lib/modules/6.1.0-other/config", "./boot/config-6.1.0-other", "./boot/config"):
        apart = configuration(tmp_path, path)
        assert policy(build(tmp_path, TinyKernel().package(), configuration=apart)) == (None, None)


def test_configuration_of_another_version_is_refused(tmp_path: Path) -> None:
    """A release is built more than once, and what it is built with may change."""
    path = f"./usr/lib/modules/{tiny_files.RELEASE}/config"
    apart = configuration(tmp_path, path, version="6.1-2")
    with pytest.raises(
        SetupError, match=r"linux-base-tiny 6\.1-2 does not belong to linux-image-tiny 6\.1-1"
    ):
        build(tmp_path, TinyKernel().package(), configuration=apart)


def test_configuration_beside_a_kernel_file_is_refused(tmp_path: Path) -> None:
    apart = configuration(tmp_path, f"./usr/lib/modules/{tiny_files.RELEASE}/config")
    with pytest.raises(SetupError, match="does not belong to a kernel without a package"):
        build(tmp_path, TinyKernel().bzimage(), configuration=apart)


def test_configuration_that_is_no_package_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "config"
    plain.write_bytes(CONFIG)
    with pytest.raises(SetupError, match="must come as a Debian package"):
        build(tmp_path, TinyKernel().package(), configuration=plain)


def test_two_configurations_leave_open_which_is_the_kernels(tmp_path: Path) -> None:
    files = {
        f"./boot/config-{tiny_files.RELEASE}": CONFIG,
        f"./boot/vmlinuz-{tiny_files.RELEASE}": TinyKernel().bzimage(),
    }
    assert policy(build(tmp_path, tiny_files.deb(files))) == (True, True)
    apart = configuration(tmp_path, f"./usr/lib/modules/{tiny_files.RELEASE}/config")
    assert policy(build(tmp_path, tiny_files.deb(files), configuration=apart)) == (None, None)


def test_meta_package_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as refusal:
        build(tmp_path, tiny_files.deb({"./usr/share/doc/x": b"x"}))
    assert "linux-image" in refusal.value.hint


def test_two_kernels_in_one_package_are_refused(tmp_path: Path) -> None:
    kernel = TinyKernel().bzimage()
    with pytest.raises(SetupError, match="2 kernels"):
        build(tmp_path, tiny_files.deb({"./boot/vmlinuz-1": kernel, "./boot/vmlinuz-2": kernel}))


def test_kernel_without_relocations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="no relocation table"):
        build(tmp_path, tiny_files.elf(TinyKernel().sections()))


def test_decompressed_payload_is_accepted(tmp_path: Path) -> None:
    kernel = TinyKernel()
    assert bytes(build(tmp_path, kernel.vmlinux()).section(".text")[1]) == bytes(kernel.text)


def test_section_that_no_rule_knows_is_told(tmp_path: Path) -> None:
    kernel = TinyKernel()
    sections = [*kernel.sections(), tiny_files.Section(".new_patch_sites", INIT + 0x8000, bytes(8), 2)]
    image = build(tmp_path, tiny_files.elf(sections) + kernel.tail())
    assert image.metadata.unknown_sections == (".new_patch_sites",)


@pytest.mark.parametrize("name", ["", "n" * 65, "metadata"])
def test_section_with_an_unusable_name_is_refused(tmp_path: Path, name: str) -> None:
    kernel = TinyKernel()
    sections = [*kernel.sections(), tiny_files.Section(name, INIT + 0x8000, bytes(8), 2)]
    with pytest.raises(MalformedError, match="kernel section"):
        build(tmp_path, tiny_files.elf(sections) + kernel.tail())


def test_site_outside_code_is_refused(tmp_path: Path) -> None:
    kernel = TinyKernel()
    kernel.tables[".return_sites"] = kernel.relative(".return_sites", [DATA])
    with pytest.raises(MalformedError, match="not in code"):
        build(tmp_path, kernel.bzimage())


def test_site_that_begins_before_its_section_is_refused(tmp_path: Path) -> None:
    kernel = TinyKernel()
    kernel.tables[".return_sites"] = kernel.relative(".return_sites", [TEXT - 1])
    with pytest.raises(MalformedError, match="not in code"):
        build(tmp_path, kernel.bzimage())


def test_site_that_ends_behind_its_section_is_refused(tmp_path: Path) -> None:
    kernel = TinyKernel()
    kernel.tables[".return_sites"] = kernel.relative(".return_sites", [TEXT + len(kernel.text) - 4])
    with pytest.raises(MalformedError, match="not in code"):
        build(tmp_path, kernel.bzimage())


def test_retpoline_site_that_is_no_branch_is_refused(tmp_path: Path) -> None:
    kernel = TinyKernel()
    kernel.tables[".retpoline_sites"] = kernel.relative(".retpoline_sites", [TEXT + 0x500])
    with pytest.raises(MalformedError, match="another form"):
        build(tmp_path, kernel.bzimage())


@pytest.mark.parametrize(
    ("replacement", "length", "replacement_length"),
    [(0, 6, 7), (3, 6, 2), (-1, 6, 2)],
    ids=["longer-than-site", "behind-section", "before-section"],
)
def test_alternative_with_impossible_replacement_is_refused(
    tmp_path: Path, replacement: int, length: int, replacement_length: int
) -> None:
    kernel = TinyKernel()
    place = kernel.address_of(".altinstr_replacement") + replacement
    entry = (TEXT + 0x380, place, 3, length, replacement_length)
    kernel.tables[".altinstructions"] = kernel.alternatives([entry])
    with pytest.raises(MalformedError, match="replacements lie outside"):
        build(tmp_path, kernel.bzimage())


def test_table_of_broken_size_is_refused(tmp_path: Path) -> None:
    kernel = TinyKernel()
    kernel.tables[".return_sites"] += b"\0"
    with pytest.raises(MalformedError, match=r"\.return_sites is broken"):
        build(tmp_path, kernel.bzimage())


def test_missing_banner_is_refused(tmp_path: Path) -> None:
    kernel = TinyKernel()
    kernel.rodata_head[0x100:0x110] = b"Unix version 1.0"
    with pytest.raises(MalformedError, match="linux_banner"):
        build(tmp_path, kernel.bzimage())


def test_progress_rises_to_the_end(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(TinyKernel().package())
    told: list[float] = []
    build_reference(path, progress=lambda step, done: told.append(done))
    assert told == sorted(told) and told[0] == 0.0 and told[-1] == 1.0
