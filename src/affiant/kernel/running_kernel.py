"""What a look needs of a running kernel: a `Guest` is one, and who looks need not know how it is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from affiant.kernel.comparison.regions import CodeRegion
from affiant.kernel.machine.cpu import CpuState
from affiant.kernel.machine.memory import GuestMemory
from affiant.kernel.machine.paging import AddressSpace
from affiant.kernel.objects.program import KernelProgram
from affiant.kernel.objects.slide import KernelLocation
from affiant.kernel.site_content.content import SiteContent
from affiant.kernel.site_content.outside import Outside
from affiant.kernel.transient.patience import Patience

if TYPE_CHECKING:
    from affiant.kernel.reference.image import ReferenceImage

__all__ = ["RunningKernel"]


class RunningKernel(Protocol):
    """A kernel that was found, as `Guest` documents it."""

    @property
    def memory(self) -> GuestMemory: ...  # noqa: D102
    @property
    def cpus(self) -> tuple[CpuState, ...]: ...  # noqa: D102
    @property
    def reference(self) -> ReferenceImage: ...  # noqa: D102
    @property
    def location(self) -> KernelLocation: ...  # noqa: D102
    @property
    def program(self) -> KernelProgram: ...  # noqa: D102
    @property
    def kernel_space(self) -> AddressSpace: ...  # noqa: D102
    @property
    def text(self) -> CodeRegion: ...  # noqa: D102
    @property
    def text_content(self) -> SiteContent: ...  # noqa: D102
    @property
    def outside(self) -> Outside: ...  # noqa: D102
    @property
    def patience(self) -> Patience: ...  # noqa: D102
    @property
    def paused(self) -> bool: ...  # noqa: D102
    @property
    def tables_around(self) -> frozenset[int]: ...  # noqa: D102
