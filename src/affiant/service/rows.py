"""Rows of things that the service knows, as JSON or as a table for people."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence

__all__ = ["show_rows"]

_WIDEST = 4096


def show_rows(
    rows: Sequence[Mapping[str, object]],
    *,
    as_json: bool,
    columns: Sequence[str] | None = None,
    reasons: Sequence[str] = (),
) -> int:
    """Print all of the rows as JSON, or some of their columns for people, without those that are empty.

    What stands under the names in `reasons` is long, and few rows have it: it is told below the table, in a
    line that begins as the row does.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if as_json or not rows:
        console.out(json.dumps(list(rows), indent=2) if as_json else "none", highlight=False)
        return 0
    table = Table(box=None, pad_edge=False)
    shown = [name for name in columns or rows[0] if any(row[name] != "" for row in rows)]
    for name in shown:
        table.add_column(name.replace("_", " "), no_wrap=True)
    for row in rows:
        table.add_row(*(escape(_cell(name, row[name])) for name in shown))
    # A row that is wider than the terminal goes on in the next line: what is cut off cannot be read at all,
    # and a pipe has no width.
    needed = console.measure(table, options=console.options.update_width(_WIDEST)).maximum
    Console(width=max(console.width, needed)).print(table, crop=False)
    for row in rows:
        for name in reasons:
            if row[name]:
                first = _cell(shown[0], row[shown[0]])
                console.out(f"{first}  {name.replace('_', ' ')}: {_cell(name, row[name])}", highlight=False)
    return 0


def _cell(name: str, value: object) -> str:
    if value is None:
        return "never"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if name.endswith(("_at", "_seen")) and isinstance(value, int):
        return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(value))
    # Digests are told apart by their beginning; `--json` has them in full.
    text = str(value)
    if re.fullmatch("[0-9a-f]{32,}", text):
        return text[:12]
    # Some of it came from machines, and a relay may have put words into it: none may steer a terminal.
    return "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in text)
