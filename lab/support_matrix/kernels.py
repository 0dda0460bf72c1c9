"""The kernels that the lab supports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from affiant.folders import cache_folder
from affiant.vm.kernels import DEFAULT_KERNEL, GuestKernel, debian_kernel
from affiant.vm.packages import PackageCache

__all__ = ["KERNELS", "SupportedKernel"]


@dataclass(frozen=True, slots=True)
class SupportedKernel:
    """A kernel of a Debian suite, by the package that stands for the newest one there is."""

    name: str
    suite: str
    package: str = DEFAULT_KERNEL

    def newest(self, *, refresh: bool) -> GuestKernel:
        """Return the kernel: with `refresh` the suite's newest, else the one that was fetched last."""
        return debian_kernel(PackageCache(cache_folder()), self.package, suite=self.suite, refresh=refresh)


KERNELS: Final = (
    SupportedKernel("6.1 cloud", "bookworm"),
    SupportedKernel("6.1 generic", "bookworm", "linux-image-amd64"),
    SupportedKernel("6.12 cloud", "trixie"),
    SupportedKernel("7.x cloud", "sid"),
)
"""In the order of the page's columns. Names are those of the columns, and unique."""
