"""The vCPUs in QEMU's device state stream (docs/devel/migration.rst and xen-save-devices-state.txt of QEMU).

The stream is a row of sections, one for each device: a header (a byte, the section's number, name,
instance and version), the device's fields, a footer with the section's number. Fields have neither
names nor lengths. But since machines migrate between versions of QEMU, the fields of `cpu` at version
12 (`vmstate_x86_cpu` in target/i386/machine.c; those of 7.2 are those of 2018) are fixed; what came later
follows in subsections, which have a name and a version.

QEMU writes the stream, but the guest fills registers, and a buffer of any device could be filled to
look like a section. So a section is that of a vCPU only if it has the right name, instance and version,
ends where it must, and agrees with QEMU's register listing of the same moment. Everything else is passed
over; a vCPU that no section fits, or more than one, makes all of it unavailable.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import Final

from affiant.kernel.machine.cpu import CpuState, DescriptorTable, SegmentRegister
from affiant.kernel.machine.saved_cpu import SavedCpu, disagreement
from affiant.model.errors import MalformedError, UnavailableError

__all__ = ["parse_device_stream"]

_MAGIC: Final = b"QEVM\x00\x00\x00\x03"
_LONGEST: Final = 4 << 20
_FULL_SECTION, _SUBSECTION, _FOOTER = 0x04, 0x05, 0x7E
_NAME: Final = b"\x03cpu"
_VERSION: Final = 12
_MOST_CANDIDATES: Final = 64
_MOST_SUBSECTIONS: Final = 64
_SEGMENT = "IQII"
_FIELDS = struct.Struct(
    ">16Q2QI"  # general registers, RIP, RFLAGS (in part), QEMU's own flags
    "4H" + 8 * "QH"  # control words and registers of the FPU
    + 10 * _SEGMENT  # ES CS SS DS FS GS LDT TR GDT IDT
    + "IQQ"  # SYSENTER CS, ESP, EIP
    "4Q8Q"  # CR0 CR2 CR3 CR4, DR0-DR7
    "iI32Q"  # A20, MXCSR, XMM0-XMM15
    "6Q"  # EFER STAR LSTAR CSTAR FMASK KERNEL_GS_BASE
    "IQI"  # SMBASE, PAT, QEMU's own flags
    "4Q4HIB"  # nested SVM
    "11QQ16Q"  # MTRRs
    "iIQi4BI"  # pending events, time stamp counter
    "3Q40Q"  # machine check
    "Q2Q"  # TSC_AUX, KVM clocks
    "2Q32Q"  # XCR0, XSTATE_BV, upper halves of YMM0-YMM15
)  # fmt: skip
# Where they are in the tuple of fields.
_RIP, _SEGMENTS, _SYSENTER, _CR, _DR, _SYSCALL, _PAT = 16, 39, 79, 82, 86, 128, 135
_SEGMENT_NAMES: Final = ("ES", "CS", "SS", "DS", "FS", "GS", "LDT", "TR")
# Sizes of subsections, in bytes. One that is not here (of no fixed size, or newer) ends the reading.
_SUBSECTIONS: Final = {
    "cpu/exception_info": 11,
    "cpu/async_pf_msr": 8,
    "cpu/async_pf_int_msr": 8,
    "cpu/async_pv_eoi_msr": 8,
    "cpu/steal_time_msr": 8,
    "cpu/poll_control_msr": 8,
    "cpu/fpop_ip_dp": 18,
    "cpu/msr_tsc_adjust": 8,
    "cpu/msr_tscdeadline": 8,
    "cpu/msr_ia32_misc_enable": 8,
    "cpu/msr_ia32_feature_control": 8,
    "cpu/msr_architectural_pmu": 344,
    "cpu/mpx": 88,
    "cpu/msr_hyperv_hypercall": 16,
    "cpu/msr_hyperv_vapic": 8,
    "cpu/msr_hyperv_time": 8,
    "cpu/msr_hyperv_crash": 40,
    "cpu/msr_hyperv_runtime": 8,
    "cpu/msr_hyperv_synic": 152,
    "cpu/msr_hyperv_stimer": 64,
    "cpu/msr_hyperv_reenlightenment": 24,
    "cpu/avx512": 1600,
    "cpu/xss": 8,
    "cpu/umwait": 4,
    "cpu/tsc_khz": 8,
    "cpu/msr_smi_count": 8,
    "cpu/pkru": 4,
    "cpu/pkrs": 4,
    "cpu/spec_ctrl": 8,
}


def parse_device_stream(stream: bytes, listed: Sequence[CpuState]) -> tuple[SavedCpu, ...]:
    """Return the saved state of each vCPU, given the register listings of the same moment.

    Guaranteed: each has its section, and agrees with its listing in everything that both show. Raises
    MalformedError if it is no such stream, and UnavailableError if a vCPU has no section that agrees.
    """
    if not stream.startswith(_MAGIC):
        raise MalformedError("what QEMU wrote is no device state of a known version")
    if len(stream) > _LONGEST:
        raise MalformedError(f"a device state of {len(stream)} bytes, at most {_LONGEST} are read")
    return tuple(_saved(stream, cpu) for cpu in listed)


def _saved(stream: bytes, cpu: CpuState) -> SavedCpu:
    agreeing: list[SavedCpu] = []
    reason = "QEMU's device state has no section for it"
    for start, number in _candidates(stream, cpu.index):
        try:
            saved = _section(stream, start, number, cpu)
        except MalformedError as error:
            reason = str(error)
            continue
        if differs := disagreement(saved, cpu):
            reason = f"its section and its register listing differ in {differs}"
        else:
            agreeing.append(saved)
    if len(agreeing) > 1:
        reason = "more than one section of QEMU's device state agrees with its register listing"
    if len(agreeing) != 1:
        raise UnavailableError(f"the system registers of CPU {cpu.index} are not known: {reason}")
    return agreeing[0]


def _candidates(stream: bytes, index: int) -> Iterator[tuple[int, int]]:
    """Yield where the fields may begin, and the section's number, everywhere in the stream.

    Raises UnavailableError if there are too many places, of which the true one may be the last.
    """
    pattern = _NAME + struct.pack(">II", index, _VERSION)
    at = stream.find(pattern)
    for _ in range(_MOST_CANDIDATES):
        if at < 0:
            return
        if at >= 5 and stream[at - 5] == _FULL_SECTION:
            yield at + len(pattern), int.from_bytes(stream[at - 4 : at], "big")
        at = stream.find(pattern, at + 1)
    raise UnavailableError(f"QEMU's device state has too much that looks like a section of CPU {index}")


def _section(stream: bytes, start: int, number: int, listed: CpuState) -> SavedCpu:
    if start + _FIELDS.size > len(stream):
        raise MalformedError("QEMU's device state ends inside its section")
    fields = _FIELDS.unpack_from(stream, start)
    spec_ctrl = _spec_ctrl(stream, start + _FIELDS.size, number)
    segments = [
        SegmentRegister(*fields[_SEGMENTS + 4 * place : _SEGMENTS + 4 * place + 4]) for place in range(10)
    ]
    efer, star, lstar, cstar, mask, gs = fields[_SYSCALL : _SYSCALL + 6]
    return SavedCpu(
        index=listed.index,
        instruction_pointer=fields[_RIP],
        flags=listed.flags,
        halted=listed.halted,
        cr0=fields[_CR],
        cr3=fields[_CR + 2],
        cr4=fields[_CR + 3],
        efer=efer,
        gdt=DescriptorTable(segments[8].base, segments[8].limit),
        idt=DescriptorTable(segments[9].base, segments[9].limit),
        segments=dict(zip(_SEGMENT_NAMES, segments[:8], strict=True)),
        debug=fields[_DR : _DR + 8],
        star=star,
        lstar=lstar,
        cstar=cstar,
        syscall_mask=mask,
        kernel_gs_base=gs,
        sysenter_cs=fields[_SYSENTER],
        sysenter_esp=fields[_SYSENTER + 1],
        sysenter_eip=fields[_SYSENTER + 2],
        pat=fields[_PAT],
        spec_ctrl=spec_ctrl,
    )


def _spec_ctrl(stream: bytes, at: int, number: int) -> int | None:
    """Read subsections up to the footer; return SPEC_CTRL, None if one of them hides whether it is there.

    Raises MalformedError where neither a subsection nor this section's footer stands.
    """
    found = 0
    for _ in range(_MOST_SUBSECTIONS):
        if stream[at : at + 5] == bytes([_FOOTER]) + number.to_bytes(4, "big"):
            return found
        length = stream[at + 1] if stream[at : at + 1] == bytes([_SUBSECTION]) and at + 1 < len(stream) else 0
        name = stream[at + 2 : at + 2 + length]
        if not name.startswith(b"cpu/") or not name.isascii() or len(name) != length:
            raise MalformedError("its section in QEMU's device state does not end where it must")
        size = _SUBSECTIONS.get(name.decode())
        if size is None:
            return None
        at += 2 + length + 4 + size
        if name == b"cpu/spec_ctrl":
            found = int.from_bytes(stream[at - size : at], "big")
    raise MalformedError("its section in QEMU's device state has too many parts")
