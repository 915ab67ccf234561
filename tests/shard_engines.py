"""Engines that need no model: vectors computed from the text alone. Importable, so that other processes can build them too."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ebr.errors import DataError
from ebr.model.compute.engine import TOO_LARGE, UnfitTexts

DIM = 5
LONGEST = 6


def vectors_of(texts):
    """(N, 5) float32, another vector for another text."""
    rows = [[len(text), ord(text[0]), ord(text[-1]) / 3, sum(map(ord, text)) / 7, -0.1] for text in texts]
    return np.array(rows, dtype=np.float32).reshape(-1, DIM)


class FakeEngine:
    """Notes what goes through it.

    too_large: texts that do not fit; lost: those whose vector is zeros. A pass holds `batch` texts and takes `seconds`; the
    n-th text (from 1) is too much for it when n = dies_at. at_text: what happens when a text comes by.
    """

    dim = DIM

    def __init__(self, *, too_large=(), lost=(), batch=4, seconds=0.0, token_budget=64, dies_at=None):
        self.seen = []
        self.threads = set()
        self.too_large = set(too_large)
        self.lost = set(lost)
        self.batch = batch
        self.seconds = seconds
        self.token_budget = token_budget
        self.dies_at = dies_at
        self.at_text = {}

    def prepare(self, texts):
        return list(texts)

    def compute(self, texts, on_batch=None):
        self.threads.add(threading.get_ident())
        vectors = vectors_of(texts)
        vectors[[index for index, text in enumerate(texts) if text in self.lost]] = 0
        for start in range(0, len(texts), self.batch):
            some = texts[start : start + self.batch]
            for text in some:
                self.at_text.get(text, lambda: None)()
            time.sleep(self.seconds)
            self.seen += some
            if self.dies_at is not None and len(self.seen) >= self.dies_at:
                raise RuntimeError("the engine died")
            if on_batch:
                on_batch(len(some))
        indices = [index for index, text in enumerate(texts) if text in self.too_large]
        if indices:
            vectors[indices] = np.nan
            raise UnfitTexts(dict.fromkeys(indices, TOO_LARGE), vectors)
        return vectors

    def cut(self, texts):
        return np.array([len(text) > LONGEST for text in texts], dtype=bool)

    def encode(self, texts):
        return self.compute(self.prepare(texts))


@dataclass(frozen=True)
class Builder:
    """Builds a FakeEngine in a worker. deadly: a text that ends the process; mark: only while this file is absent.

    wrong, broken: texts at which the engine raises a DataError, or a KeyError.
    """

    seconds: float = 0.0
    deadly: str | None = None
    mark: Path | None = None
    wrong: str | None = None
    broken: str | None = None

    def __call__(self, place):
        place.apply()
        engine = FakeEngine(seconds=self.seconds)
        engine.at_text = {self.deadly: self._die, self.wrong: _refuse, self.broken: _stumble}
        return engine

    def _die(self):
        if self.mark is None or not self.mark.exists():
            if self.mark is not None:
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def _refuse():
    raise DataError("the engine cannot do this")


def _stumble():
    return {}["absent"]
