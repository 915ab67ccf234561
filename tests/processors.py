"""The two kinds of processor that a test has to pass on, whichever it runs on: with bfloat16 products, and without."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ebr.model.compute import attention

WITH_BFLOAT16, WITHOUT = "avx512_bf16", "avx2"
KINDS = (WITH_BFLOAT16, WITHOUT)
_FLAGS = {WITH_BFLOAT16: "avx2 avx512f avx512_bf16 amx_bf16", WITHOUT: "avx2"}


def pretend(kind: str, patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let this process take its processor for one of the two kinds: EBR by its flags, bitsandbytes by its own question."""
    info = folder / "cpuinfo"
    info.write_text(f"processor : 0\nmodel name : pretended {kind}\nflags : fpu {_FLAGS[kind]}\n", encoding="ascii")
    patch.setattr(attention, "CPU_INFO", info)
    if importlib.util.find_spec("bitsandbytes"):
        patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: kind == WITH_BFLOAT16)
