"""Where a front end puts what training makes."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from ebr.data.files.places import check_place
from ebr.data.files.write import read_json, read_manifest, size_of, write_json
from ebr.errors import ConfigError
from ebr.training.loop.checkpoints import NAME, step_of, whole_checkpoints

HISTORY = "training_log.json"
STEPS = "detailed_training_logs.json"
EPOCHS = "training_losses.json"
SUMMARY = "training_summary_report.json"
WATCH = "training_warnings.json"
CHECK, CHECK_PAGE = "training_check.json", "training_check.txt"
TRACKING = "runs"
PARTIAL = ".partial"
"""A checkpoint while it is written."""
RUN = "ebr_run.json"
"""Says that the files around it are a run's, and whether it is finished."""
_FILES = {HISTORY, STEPS, EPOCHS, SUMMARY, WATCH, CHECK, CHECK_PAGE, TRACKING, PARTIAL, RUN}


@dataclass(frozen=True)
class Layout:
    """`final` is the finished model; `work` holds checkpoints and logs while, and after, it is made.

    `work` may hold other things too, `final` among them: only what a run of ours made is ever moved or deleted.
    """

    final: Path
    work: Path

    def check(self) -> None:
        """Refuse to replace what is not a result of ours, once what a killed run moved away is back. Raises ConfigError."""
        check_place(self.final, "output_dir", is_folder=True)
        made = read_manifest(self.final) if self.final.is_dir() else None
        is_model = made is not None and made.get("kind", "model") == "model"
        if self.final.is_dir() and any(self.final.iterdir()) and not is_model:
            raise ConfigError(
                f"output_dir: {self.final} holds something that is not a model of ours; move it, or choose another"
            )
        found = [] if _is_run(self.work) else [path.name for path in _products(self.work)]
        if strange := sorted(set(found) - {CHECK, CHECK_PAGE}):  # a check alone leaves nothing to lose
            raise ConfigError(
                f"output_dir: {self.work} holds {', '.join(strange[:3])}, but not of a run of ours ({RUN} is absent); "
                "move that, or choose another folder"
            )

    def check_base(self, model_name: str, base_sha256: str, *, is_adapter: bool) -> None:
        """Refuse to replace the model that another base was tuned into, or the base of an adapter. Raises ConfigError.

        The same base has the same name, the same place or the same weights.
        """
        if is_adapter and _place(model_name) == self.final.resolve():
            raise ConfigError(f"output_dir: the adapter would replace {self.final}, its own base; give another output_dir")
        made = (read_manifest(self.final) or {}) if self.final.is_dir() else {}
        # An adapter that was tuned further began as another adapter of its base.
        former = made.get("start_model", made.get("base_model"))
        is_same = former == model_name or made.get("start_sha256", made.get("base_sha256")) == base_sha256
        if former is None or is_same or _place(model_name) in (_place(former), self.final.resolve()):
            return
        raise ConfigError(
            f"output_dir: {self.final} holds a model that was tuned from {former}, and a run of {model_name} would replace it; "
            "give another output_dir"
        )

    def begin(self) -> str | None:
        """Make room for a new run. An interrupted run is set aside, never deleted: returns one line that says so."""
        notice = None
        self.check()
        if self._could_be_lost():
            names = (self.work.with_name(f"{self.work.name}.interrupted-{number}") for number in count(1))
            aside = next(name for name in names if not name.exists() and not name.is_symlink())
            _move(self.work, aside)
            notice = f"an interrupted run was set aside in {aside}; to go on with one, use resume_from_checkpoint"
        for path in _products(self.work):
            _remove(path)
        self._note(finished=False)
        return notice

    def _could_be_lost(self) -> bool:
        return _is_run(self.work) and not _is_finished(self.work) and bool(whole_checkpoints(self.work))

    def own_bytes(self, checkpoint: Path | None = None) -> int:
        """Bytes of what a run deletes or takes over at its beginning. checkpoint: where it goes on from; None = nowhere."""
        run = self.work if checkpoint is None else checkpoint.resolve().parent
        if checkpoint is None and self._could_be_lost():
            return 0  # it is set aside, and stays
        return sum(map(size_of, _products(run)))

    def go_on(self, checkpoint: Path) -> Path:
        """Take up the run that a checkpoint belongs to, and return where the checkpoint is then.

        A run that was set aside moves back; what is in its place is set aside in turn. Later checkpoints go: the run writes
        them again, and until then they would pass for its newest. Raises ConfigError for a checkpoint outside any run.
        """
        step, run = step_of(checkpoint), checkpoint.resolve().parent
        if not _is_run(run) or not NAME.fullmatch(checkpoint.name):
            raise ConfigError(
                f"resume_from_checkpoint {checkpoint}: does not lie under its own name in the folder of its run, with {RUN}; "
                "put it back there"
            )
        if run != self.work.resolve():
            self.begin()
            (self.work / RUN).unlink()
            _move(run, self.work)
            with suppress(OSError):
                run.rmdir()  # unless it holds anything else
        for later in whole_checkpoints(self.work):
            if step_of(later) > step:
                _remove(later)
        self._note(finished=False)
        return self.work / checkpoint.name

    def end(self) -> None:
        """Mark the run finished: its checkpoints are no longer work that could be lost."""
        self._note(finished=True)

    def _note(self, *, finished: bool) -> None:
        write_json(self.work / RUN, {"finished": finished})


def _place(name: str) -> Path:
    """Where a model lies, if its name is a path."""
    return Path(name).expanduser().resolve()


def _is_run(folder: Path) -> bool:
    return (folder / RUN).is_file()


def _is_finished(folder: Path) -> bool:
    try:
        return bool(read_json(folder / RUN)["finished"])
    except (ValueError, KeyError, TypeError):
        return False  # torn: whatever is there could be lost


def _products(folder: Path) -> list[Path]:
    """What a run makes in a folder, by its names; what says that it is a run comes last."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name in _FILES or NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.name == RUN)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _move(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in _products(source):
        shutil.move(path, target / path.name)


def pair_layout(output_dir: Path, model_short_name: str, finetune_type: str) -> Layout:
    """Where `ebr finetune` writes: <output_dir>/<model>-peft-lora (-peft-qlora, -full), and beside it the same with .run."""
    output_dir = output_dir.expanduser()
    name = f"{model_short_name}-full" if finetune_type == "full" else f"{model_short_name}-peft-{finetune_type}"
    return Layout(final=output_dir / name, work=output_dir / f"{name}.run")


def triplet_layout(output_dir: Path) -> Layout:
    """Where `ebr train` writes: <output_dir>/final, and checkpoints and logs beside it."""
    folder = output_dir.expanduser().resolve()
    return Layout(final=folder / "final", work=folder)
