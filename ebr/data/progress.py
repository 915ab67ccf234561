"""Progress as whoever watches can see it: a bar at a terminal, a widget in a notebook, and one line a stage for nobody."""

from __future__ import annotations

import os
import sys
from typing import Any, TypeAlias

from tqdm import tqdm

from ebr.data.text.counted import counted

LIVE = "EBR_LIVE_PROGRESS"
"""Set for the kernel of a notebook whose output is shown at a terminal as it comes; see ebr.notebook."""

Bar: TypeAlias = tqdm

_SIGN_OF_LIFE_S = 600
_PLURALS = {"query": "queries"}


def progress_bar(items: Any = None, **options: Any) -> Bar:  # noqa: ANN401 - any iterable
    """A tqdm of the kind that fits; items and options are tqdm's.

    Where nobody watches, close() says in one line what was done; a stage that takes long also says so every ten minutes.
    """
    kernel = _kernel()
    # A notebook keeps what is written to either stream, and the warnings stand out if they have one for themselves.
    options = {"dynamic_ncols": True, "file": sys.stderr if kernel is None else sys.stdout, **options}
    if not is_watched():
        return StageLine(items, **options)
    if kernel is None or os.environ.get(LIVE):
        return tqdm(items, **options)
    from tqdm.auto import tqdm as widget

    return widget(items, **options)


def is_watched() -> bool:
    """Whether somebody sees a bar move: at a terminal, or in a notebook that is open in front of a person."""
    kernel = _kernel()
    if kernel is None:
        return sys.stderr is not None and sys.stderr.isatty()
    # Programs that run notebooks (nbclient, papermill, nbconvert) tell the kernel that nobody is there to be asked.
    request: dict[str, Any] = kernel.get_parent() if hasattr(kernel, "get_parent") else {}
    return bool(os.environ.get(LIVE) or request.get("content", {}).get("allow_stdin"))


def _kernel() -> Any:  # noqa: ANN401 - ipykernel's
    """The Jupyter kernel that this code runs in; None outside of one."""
    ipython = sys.modules.get("IPython")
    return getattr(ipython.get_ipython(), "kernel", None) if ipython else None


class StageLine(tqdm):  # type: ignore[misc]
    """A bar that nobody watches: a line when it is closed, after `delay` seconds at the earliest."""

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        # gui: tqdm itself shows nothing then.
        super().__init__(*args, **options, gui=True)
        self.disable: bool
        self._said_s = 0.0

    def display(self, *args: object, **options: object) -> None:
        """Nothing for an update, but a sign of life."""
        if (seconds := self._seconds()) - self._said_s >= _SIGN_OF_LIFE_S:
            self._said_s = seconds
            self.fp.write(self._line(seconds) + "\n")

    def clear(self, *args: object, **options: object) -> None:
        """There is nothing to clear."""

    def close(self) -> None:
        """Say what was done."""
        if self.disable:
            return
        self.disable = True
        self._decr_instances(self)
        seconds = self._seconds()
        if self.n > self.initial and seconds >= self.delay and self.leave is not False:
            self.fp.write(self._line(seconds) + "\n")

    def _seconds(self) -> float:
        return float(self._time() - self.start_t)

    def _line(self, seconds: float) -> str:
        """`embed: 1,024 rows in 3.2 s (320/s)`; of how many, while there are more to come."""
        of = f"{self.n:,} of " if self.total and self.total > self.n else ""
        done = f"{of}{counted(self.total if of else self.n, self.unit, _PLURALS.get(self.unit))}"
        rate = (self.n - self.initial) / max(seconds, 1e-9)
        figures = ", ".join([f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s", *([self.postfix] if self.postfix else [])])
        return f"{self.desc}: {done} in {seconds:,.1f} s ({figures})"
