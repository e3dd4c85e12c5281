"""Progress for people: a bar with the time left on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from adapt.workspace import write_json

Advance = Callable[[int], None]
"""Called with how many items are done so far."""


class Narrator:
    """Says what the job does; keeps the seconds of every stage.

    Args:
        kept: a file that holds them too, so that a run that was stopped still knows what its stages took.
    """

    def __init__(self, console: Console | None = None, kept: Path | None = None) -> None:
        self.console, self.kept = console or Console(highlight=False), kept
        self.seconds: dict[str, float] = {}
        if kept is not None and kept.is_file():
            self.seconds = json.loads(kept.read_text(encoding="utf-8"))

    def say(self, text: str) -> None:
        """One plain line; square brackets are text."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str, total: int | None) -> Iterator[Advance]:
        """A bar for one stage; yields a function that is told how much is done. `total` is None when not yet known."""
        started, counted = time.monotonic(), [0]
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            task = progress.add_task(name, total=total)

            def advance(done: int) -> None:
                counted[0] = done
                progress.update(task, completed=done)

            yield advance
        spent = time.monotonic() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        if self.kept is not None:
            write_json(self.kept, self.seconds)
        self.say(f"  {name}: {counted[0]} in {spent:.1f} s")
