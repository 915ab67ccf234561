"""A finished model whose folder cannot be written is not lost: it goes where the user says, or where there is room."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ebr.data.files.write import free_bytes, reason_of
from ebr.data.speech import Ask, Say
from ebr.errors import SaveError, why_not_utf8

if TYPE_CHECKING:
    from ebr.training.loop.fit import TrainingRecord
    from ebr.training.loop.layouts import Layout

Save = Callable[[Path], None]
"""Writes the finished folder, whole or not at all, at a path. Raises OSError."""

_GO_ON = "--resume_from_checkpoint true"


@dataclass(frozen=True)
class FinishedModel:
    """A model in memory, and what there is to save it with.

    layout: where it belongs, and where its checkpoints are. n_bytes: about what it takes.
    """

    save: Save
    layout: Layout
    record: TrainingRecord
    n_bytes: int

    def saved(self, ask: Ask | None, say: Say) -> Path:
        """Save it where it belongs, or where the user says; returns where. ask: None where nobody can be asked.

        Raises SaveError when it cannot be written where it belongs, and nobody says where else: once it is saved in the
        temporary folder or in the user's home, where there is room, and with how to go on.
        """
        final = self.layout.final
        try:
            self.save(final)
            return final
        except OSError as error:
            failure = error
        if ask is not None and (folder := self._saved_as_told(failure, ask, say)):
            return folder
        raise SaveError(self._saved_anywhere(failure)) from failure

    def _saved_as_told(self, failure: OSError, ask: Ask, say: Say) -> Path | None:
        """The folder that the user gave and that took it; None when there was no answer."""
        folder = self.layout.final
        while True:
            say(f"the finished model could not be written to {folder} ({reason_of(failure)})")
            answer = ask(
                "another folder for it, or the same one once there is room (nothing = wherever there is room): "
            ).strip()
            if not answer:
                return None
            try:
                folder = _folder_named(answer)
                if folder != self.layout.final.resolve() and folder.exists() and not _is_empty(folder):
                    raise FileExistsError("it holds something; name a new folder")
                self.save(folder)
                return folder
            except OSError as error:
                failure = error

    def _saved_anywhere(self, failure: OSError) -> str:
        """Save it in the first place that takes it; what to tell the user."""
        said = f"the finished model could not be written to {self.layout.final} ({reason_of(failure)})"
        places = _places()
        for place in places:
            free = free_bytes(place)
            if free is not None and free < self.n_bytes:
                continue
            folder = _new_folder(place, self.layout.final)
            try:
                self.save(folder)
            except OSError:
                continue
            return "\n".join([f"{said}; it is saved in {folder} instead", "load it from there, or move it", *self._again()])
        said += "".join(f", nor to {place}" for place in places)
        return "\n".join([said, *(self._again() or [self._what_is_left()])])

    def _again(self) -> list[str]:
        """How the run's checkpoints bring the model back as it is; empty where they do not."""
        from ebr.training.loop.checkpoints import checkpoint_at

        last, weights = (checkpoint_at(self.layout.work, step) for step in (self.record.n_steps, self.record.weights_step))
        if not (last and weights):
            return []
        return [f"{weights} holds its weights: make room, and the same command with {_GO_ON} saves it without training"]

    def _what_is_left(self) -> str:
        """Of a model that is in no checkpoint."""
        from ebr.training.loop.checkpoints import step_of, whole_checkpoints

        whole = whole_checkpoints(self.layout.work)
        if not whole:
            return "no checkpoint holds it: its weights are lost; make room, and train again"
        return (
            f"its weights, of step {self.record.weights_step}, are lost; the newest checkpoint, {whole[-1]}, is of step "
            f"{step_of(whole[-1])}: make room, and the same command with {_GO_ON} goes on from there"
        )


def _folder_named(answer: str) -> Path:
    """The folder that somebody typed. Raises OSError for what is no path: nobody's home, a loop of links, no UTF-8."""
    try:
        folder = Path(answer).expanduser().resolve()
    except (RuntimeError, ValueError) as error:
        raise OSError(f"{answer!r} names no folder: {error}") from None
    if reason := why_not_utf8(str(folder)):
        raise OSError(f"{answer!r} {reason}")
    return folder


def _places() -> list[Path]:
    """Where a model may go unasked: the temporary folder and the user's home, as far as there are any."""
    places = []
    for find in (tempfile.gettempdir, Path.home):
        with suppress(OSError, RuntimeError):  # none where a file can be written; nobody's home
            places.append(Path(find()))
    return [place for place in places if not why_not_utf8(str(place))]


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _new_folder(place: Path, final: Path) -> Path:
    """A name that says what it is, and that nothing has."""
    from ebr.model.origin import telling_name

    name = f"ebr-saved-{telling_name(final.resolve().parts)}"
    names = (place / (name if number == 1 else f"{name}-{number}") for number in count(1))
    return next(folder for folder in names if not folder.exists() and not folder.is_symlink())
