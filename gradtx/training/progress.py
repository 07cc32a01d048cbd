"""The progress of a long call: a bar (with the extra `progress`), lines of text, or nothing."""

import importlib
import sys
import time
from typing import Any


class Progress:
    """Steps done, loss, rate and time left: in a bar if rich is installed, else in a line at most every 5 s.

    Nothing is shown if standard error is not a terminal, or with `show=False`.
    """

    def __init__(self, who: str, total: int | None, *, show: bool):
        self._who, self._total, self._bar = who, total, None
        self._begun = self._last = time.monotonic()
        self._show = show and sys.stderr.isatty()
        if self._show:
            self._bar = _rich_bar(who, total)

    @property
    def shown(self) -> bool:
        """Whether anything is shown."""
        return self._show

    def update(self, done: int, text: str) -> None:
        """Show that `done` steps are done, and `text`, such as the latest loss."""
        if not self._show:
            return
        now = time.monotonic()
        rate = done / max(now - self._begun, 1e-9)
        text = f"{text}, {rate:.3g} steps/s"
        if self._bar is not None:
            self._bar[0].update(self._bar[1], completed=done, text=text)
        elif done and now - self._last >= 5:
            self._last = now
            left = "" if self._total is None else f", {(self._total - done) / rate:.0f} s left"
            of = "" if self._total is None else f" of {self._total}"
            sys.stderr.write(f"{self._who}: {done}{of}, {text}{left}\n")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar[0].stop()


def _rich_bar(who: str, total: int | None) -> Any:
    try:
        progress: Any = importlib.import_module("rich.progress")
        console: Any = importlib.import_module("rich.console")
    except ImportError:
        return None
    columns = [
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[text]}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
    ]
    bar = progress.Progress(*columns, console=console.Console(stderr=True), refresh_per_second=4)
    bar.start()
    return bar, bar.add_task(who, total=total, text="")
