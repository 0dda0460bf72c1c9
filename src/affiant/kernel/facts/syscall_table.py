"""The fact `syscall_table`, as assertion scripts read it."""

from __future__ import annotations

from dataclasses import dataclass

from affiant.kernel.facts.as_json import Json, bounded
from affiant.kernel.guest import Guest
from affiant.kernel.kernel_image.syscalls import SyscallTable, WrongEntry, read_syscall_tables
from affiant.model.errors import UnavailableError

__all__ = ["SYSCALL_TABLE_FIELDS", "SyscallTables", "syscall_table"]

SYSCALL_TABLE_FIELDS = {
    "tables": "name, dispatch (table, or switch where text decides), entries, unread",
    "entries": "entries compared in all tables",
    "wrong": "table, index, symbol, expected, found, found_symbol of each entry that differs",
    "wrong_left_out": "entries beyond the first 256",
}


@dataclass(frozen=True, slots=True)
class SyscallTables:
    """Every system call table of this kernel."""

    tables: tuple[SyscallTable, ...]

    def to_json(self) -> dict[str, Json]:
        """Return the fact `syscall_table`."""
        wrong = [(table.name, entry) for table in self.tables for entry in table.wrong]
        return {
            "tables": [
                {
                    "name": table.name,
                    "dispatch": table.dispatch,
                    "entries": table.entries,
                    "unread": table.unread,
                }
                for table in self.tables
            ],
            "entries": sum(table.entries for table in self.tables),
            **bounded("wrong", wrong, _wrong),
        }


def syscall_table(guest: Guest, _now: float) -> SyscallTables:
    """Read the fact `syscall_table`."""
    if not guest.syscall_tables:
        raise UnavailableError("the reference has no system call table")
    return SyscallTables(read_syscall_tables(guest.kernel_space, guest.program, guest.syscall_tables))


def _wrong(found: tuple[str, WrongEntry]) -> dict[str, Json]:
    table, entry = found
    return {
        "table": table,
        "index": entry.index,
        "symbol": entry.symbol,
        "expected": hex(entry.expected),
        "found": hex(entry.found),
        "found_symbol": entry.found_symbol,
        "found_owner": "",
    }
