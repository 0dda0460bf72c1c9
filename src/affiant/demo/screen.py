"""How the demo looks to people: a line for each step, a moving one while it runs, pages for passports."""

from __future__ import annotations

from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from affiant.demo.story import Shown, Step
from affiant.relying_party.page import as_lines

__all__ = ["Screen"]

_WIDTH = 38


class Screen:
    """Prints to `stream`; on a terminal, what is under way shows its time."""

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._title = ""
        self._shown = False

    def begin(self, title: str) -> None:
        """Show that a step begins."""
        self._title = title
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._progress.add_task(escape(title))
            self._progress.start()

    def note(self, what: str) -> None:
        """Show what a step is doing just now."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], description=escape(f"{self._title}: {what}"))

    def end(self, step: Step) -> None:
        """Show that a step is done, how long it took and what holds now."""
        self.close()
        self._console.print(f"  {escape(step.title):<{_WIDTH}}{step.seconds:7.2f} s  {escape(step.proved)}")

    def show(self, shown: Shown) -> None:
        """Show a passport as `affiant verify` does; from the second on, what holds is not listed again."""
        self._console.print()
        lines = as_lines(shown.verified, shown.decision, in_short=self._shown)
        self._shown = True
        for line in lines:
            colour = {"ACCEPTED: healthy": "bold green", "REFUSED": "bold red"}.get(line)
            self._console.print(f"    {line}", style=colour, markup=False)
        self._console.print()

    def summarise(self, steps: list[Step], seconds: float) -> None:
        """Show each link of the chain, what was verified, and how long it took."""
        table = Table(box=SIMPLE_HEAD, title="The chain", title_justify="left", pad_edge=False)
        table.add_column("link")
        table.add_column("what now holds", overflow="fold")
        table.add_column("s", justify="right")
        for step in steps:
            table.add_row(step.title, step.proved, f"{step.seconds:.2f}")
        table.add_row("in all", "", f"{seconds:.1f}")
        self._console.print(table, soft_wrap=False)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
