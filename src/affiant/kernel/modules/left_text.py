"""Text of modules where the kernel lists none: of one that it unloads, and of init that waits to be freed.

kernel/module/main.c (`free_module()`, `do_free_init()`). A module is taken off the list first; its text is
freed when a grace period of RCU has ended. The text of its init leaves the module as soon as that is live,
and is freed likewise. In a guest that loads and unloads modules all the time there is one or the other in
most moments, so that time does not tell it from what is hidden. Content does: it is what a package holds,
relocated for that place.

Who left is found by its `struct module`, which still points to its text; whose init it was, by comparing what
modules have for init that were listed lately. Both are guesses: what is compared with a file decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from affiant.kernel.machine.memory import PAGE_SIZE
from affiant.kernel.modules.comparison import holds_text
from affiant.kernel.modules.loaded import Module, module_at
from affiant.kernel.modules.places import ModuleKey, module_key
from affiant.kernel.modules.verdict import AS_PACKAGED, IN_TRANSITION
from affiant.kernel.objects.slide import KERNEL_MAP
from affiant.kernel.page_tables.executable_pages import LAST_CODE_ADDRESS
from affiant.model.errors import AffiantError

if TYPE_CHECKING:
    from affiant.kernel.comparison.regions import CodeRegion
    from affiant.kernel.modules.verdict import ModuleCode
    from affiant.kernel.running_kernel import RunningKernel
    from affiant.kernel.site_content.content import SiteContent

__all__ = ["left_text"]

_MODULE: Final = "struct module"
_MOST_ASKED: Final = 64  # pages that may be of init; what a healthy guest has of them is a few modules'
_MOST_LINKED: Final = 4  # files for one page of init
_MOST_POINTERS: Final = 256  # at the beginnings of text: a module has its structure's, and a few functions'
_MOST_PAGES: Final = 1 << 15  # 128 MiB of data of modules
_PAGES_AT_ONCE: Final = 128
_ALIKE: Final = 0.5
"""The part of its bytes that text has in common with its file before relocation, and foreign code has not."""


class _Judge(Protocol):
    """Who knows what packages have for modules, as `ModuleJudge` documents it."""

    def knows(self, name: str) -> bool: ...

    def met(self, names: Iterable[str]) -> None: ...

    def compare(
        self, kernel: RunningKernel, key: ModuleKey, listed: Mapping[ModuleKey, Module]
    ) -> ModuleCode: ...

    def begin_like(self, page: NDArray[np.uint8], *, at_least: float) -> list[str]: ...

    def init_text(
        self, kernel: RunningKernel, name: str, start: int, listed: Mapping[ModuleKey, Module]
    ) -> tuple[CodeRegion, SiteContent] | None: ...


def left_text(
    kernel: RunningKernel, judge: _Judge, pages: Set[int], listed: Iterable[Module]
) -> frozenset[int]:
    """Return those of `pages` that hold text of a module as its package has it, all of that text.

    Raises nothing that the guest could cause: what cannot be compared is nobody's, and so is init text beyond
    more pages than a few modules have.
    """
    modules = {module_key(module): module for module in listed}
    with suppress(AffiantError):
        for module in _pointing_at(kernel, judge, pages):
            modules.setdefault(module_key(module), module)
    judge.met(module.name for module in modules.values())
    explained: set[int] = set()
    for key, module in modules.items():
        if any(start in pages for start, _ in module.text):
            explained |= _text_of(kernel, judge, key, modules)
    for start in sorted(pages - explained)[:_MOST_ASKED]:
        if start not in explained:
            explained |= _init_text_at(kernel, judge, start, modules)
    return frozenset(explained & pages)


def _text_of(
    kernel: RunningKernel, judge: _Judge, key: ModuleKey, modules: Mapping[ModuleKey, Module]
) -> set[int]:
    """Return the pages of a module's text if all of it is as packaged, sites that are half changed aside."""
    if judge.compare(kernel, key, modules).verdict not in (AS_PACKAGED, IN_TRANSITION):
        return set()
    return {
        page for start, end in modules[key].text for page in range(start, end, PAGE_SIZE)
    }  # no more than its file has, or the verdict would be another


def _init_text_at(
    kernel: RunningKernel, judge: _Judge, start: int, modules: Mapping[ModuleKey, Module]
) -> set[int]:
    """Return the pages from `start` on if they hold the text of some module's init, as packaged."""
    with suppress(AffiantError):
        live = np.frombuffer(kernel.kernel_space.read(start, PAGE_SIZE), dtype=np.uint8)
        for name in judge.begin_like(live, at_least=_ALIKE)[:_MOST_LINKED]:
            text = judge.init_text(kernel, name, start, modules)
            if text is not None and holds_text(kernel, text):
                return set(range(text[0].start, text[0].end, PAGE_SIZE))
    return set()


def _pointing_at(kernel: RunningKernel, judge: _Judge, texts: Set[int]) -> Iterator[Module]:
    """Yield modules that packages have, by their looks, whose text begins at one of these addresses."""
    program = kernel.program
    if program.has(_MODULE, "mem"):
        base = program.offset(_MODULE, f"mem[{program.constant('MOD_TEXT')}].base")
    else:
        base = program.offset(_MODULE, "core_layout.base")
    for place in islice(_words_among(kernel, texts), _MOST_POINTERS):
        with suppress(AffiantError):
            module = module_at(program, place - base)
            if judge.knows(module.name):
                yield module


def _words_among(kernel: RunningKernel, values: Set[int]) -> Iterator[int]:
    """Yield where data in the module area holds one of these values, in the first pages of it."""
    leaves = kernel.kernel_space.leaves(KERNEL_MAP, LAST_CODE_ADDRESS)
    beyond = leaves.address >= np.uint64(kernel.program.address("_end"))
    data = leaves.select(
        ~leaves.executable & leaves.writable & beyond & (leaves.size == np.uint64(PAGE_SIZE))
    )
    wanted = np.array(sorted(values), dtype=np.uint64)
    for first in range(0, min(len(data), _MOST_PAGES), _PAGES_AT_ONCE):
        piece = slice(first, first + _PAGES_AT_ONCE)
        words, _ = kernel.memory.tables(data.physical[piece] >> np.uint64(12))
        rows, columns = _found(words, wanted)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            yield int(data.address[first + row]) + 8 * column


def _found(
    words: NDArray[np.uint64], wanted: NDArray[np.uint64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    rows, columns = np.nonzero((words >= wanted[0]) & (words <= wanted[-1]))
    hits = np.isin(words[rows, columns], wanted)
    return rows[hits], columns[hits]
