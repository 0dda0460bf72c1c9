"""The fact `kernel_identity`, as assertion scripts read it."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.kernel.facts.as_json import Json
from affiant.kernel.guest import Guest

__all__ = ["KERNEL_IDENTITY_FIELDS", "KernelIdentity", "kernel_identity"]

KERNEL_IDENTITY_FIELDS = {
    "release": "the reference's release",
    "build_id": "its GNU build id, hex",
    "reference": "SHA-256 of the reference image, hex",
    "slide": "KASLR slide",
    "physical_base": "what the kernel calls phys_base",
    "anchor": "what the slide was found by: idt or page tables",
    "paging_levels": "4 or 5",
    "banner_expected": "the reference's version banner",
    "banner_found": "the banner in guest memory",
    "banner_matches": "whether they are equal",
}


@dataclass(frozen=True, slots=True)
class KernelIdentity:
    """Which kernel runs, and where. Hex strings; `banner_found` is what guest memory holds."""

    release: str
    build_id: str
    reference: str
    slide: int
    physical_base: int
    anchor: str
    paging_levels: int
    banner_expected: str
    banner_found: str

    def to_json(self) -> dict[str, Json]:
        """Return the fact `kernel_identity`."""
        return {
            "release": self.release,
            "build_id": self.build_id,
            "reference": self.reference,
            "slide": hex(self.slide),
            "physical_base": hex(self.physical_base),
            "anchor": self.anchor,
            "paging_levels": self.paging_levels,
            "banner_expected": self.banner_expected,
            "banner_found": self.banner_found,
            "banner_matches": self.banner_expected == self.banner_found,
        }


def kernel_identity(guest: Guest, _now: float) -> KernelIdentity:
    """Read the fact `kernel_identity`."""
    reference, program = guest.reference, guest.program
    expected = reference.banner
    found = program.read(program.address("linux_banner"), min(len(expected) + 1, 512))
    return KernelIdentity(
        release=reference.release,
        build_id=reference.build_id.hex(),
        reference=reference.digest.hex(),
        slide=guest.location.slide,
        physical_base=guest.location.physical_base & (1 << 64) - 1,
        anchor=guest.location.anchor,
        paging_levels=guest.location.levels,
        banner_expected=expected,
        banner_found=found.split(b"\0")[0].decode("utf-8", "backslashreplace").rstrip("\n"),
    )
