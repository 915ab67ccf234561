"""How a transformer's forward pass runs: its attention, compiled or not, its matrix products; what a machine has for it.

Without padding, the texts of a pass are laid end to end, none of them seeing another. The kernel is torch's own
torch.nn.attention.varlen, through transformers' AttentionInterface; where flash-attn is installed, transformers' own
flash_attention_2 reads the same features.
"""

from __future__ import annotations

import inspect
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Dropout, LayerNorm, Normalize, Pooling, Transformer
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils import is_flash_attn_2_available

from ebr.errors import ModelError, first_line

log = logging.getLogger(__name__)

PADDED, VARLEN, FLASH = "padded", "varlen", "flash_attention_2"
# transformers takes every name with "flash" or "sdpa" in it for one of its own.
_REGISTERED = "ebr_varlen_"
_PACKED_FEATURES = {"position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
# Modules that read either the pooled vector, or packed tokens by cu_seq_lens_q.
_READ_PACKED = (Pooling, Dense, Normalize, LayerNorm, Dropout)
_UNSUPPORTED = ("softcap", "s_aux", "position_bias")
# Of errors that are RuntimeError and nothing more.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
CPU_INFO = Path("/proc/cpuinfo")
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})


class Kernel(Protocol):
    """Attention over texts laid end to end."""

    __name__: str

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: torch.Tensor,
        longest: int,
        *,
        scale: float | None,
        window: tuple[int, int],
    ) -> torch.Tensor:
        """(T, H, D) queries over (T, Hkv, D) keys and values → (T, H, D).

        starts: (B + 1,) int32, where each text begins and the last ends. window: how many tokens before and after itself a
        token sees, -1 = all.
        """
        ...


def torch_varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    *,
    scale: float | None,
    window: tuple[int, int],
) -> torch.Tensor:
    """Kernel of torch itself, of CUDA and half precision only; see Kernel."""
    from torch.nn.attention.varlen import varlen_attn

    gqa = query.size(1) != key.size(1)
    attended = varlen_attn(query, key, value, starts, starts, longest, longest, scale=scale, window_size=window, enable_gqa=gqa)
    assert isinstance(attended, torch.Tensor)  # a tuple only when more is asked for
    return attended


def has_torch_varlen() -> bool:
    """Whether this torch has the kernel, with windows and grouped keys."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return {"scale", "window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    kernel: Kernel,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **extras: Any,  # noqa: ANN401
) -> tuple[torch.Tensor, None]:
    """An attention function of transformers: (1, H, T, D) in, (1, T, H, D) out. kernel: see torch_varlen.

    Raises ModelError for padded features, whose mask transformers drops on the way here, and for what the kernel cannot do.
    """
    if cu_seq_lens_q is None or max_length_q is None:
        raise ModelError("attention varlen: the model reads texts laid end to end now; encode with LocalEngine")
    unsupported = [name for name in _UNSUPPORTED if extras.get(name) is not None]
    if unsupported:
        raise ModelError(f"attention varlen: this model's attention needs {', '.join(unsupported)}")
    causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
    before = -1 if sliding_window is None else sliding_window - 1
    window = (before, 0 if causal else before)
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    return kernel(query, key, value, cu_seq_lens_q, max_length_q, scale=scaling, window=window)[None], None


def can_pack(model: SentenceTransformer) -> bool:
    """Whether the model's make allows texts without padding; whether its vectors stay the same, a trial shows."""
    first, *others = list(model)
    if not isinstance(first, Transformer) or not isinstance(first.model, PreTrainedModel):
        return False
    forward_only = all(params["method"] == "forward" for params in first.modality_config.values())
    compatible = first.model.is_backend_compatible() and first.model._can_set_attn_implementation()
    packed_tail = all(isinstance(module, _READ_PACKED) for module in others)
    task, backend = first.transformer_task == "feature-extraction", first.backend == "torch"
    return bool(forward_only and compatible and packed_tail and task and backend)


def unpadded_attention(model: SentenceTransformer) -> str | None:
    """The best way to do without padding on this model's device, in half precision; None where there is none."""
    if model.device.type != "cuda" or not can_pack(model):
        return None
    if is_flash_attn_2_available() and model[0].model._supports_flash_attn:
        return FLASH
    return VARLEN if has_torch_varlen() else None


def attention_of(model: SentenceTransformer) -> str:
    """How the model attends as it stands: padded, varlen or flash_attention_2."""
    if not isinstance(model[0], Transformer):
        return PADDED
    name = str(getattr(model[0].config, "_attn_implementation", None))
    if name.startswith(_REGISTERED):
        return VARLEN
    return FLASH if name == FLASH and can_pack(model) else PADDED


def set_attention(model: SentenceTransformer, attention: str, *, kernel: Kernel = torch_varlen) -> None:
    """Have the model attend so, in place. kernel: of varlen.

    Raises ModelError for a model that cannot do without padding.
    """
    if attention_of(model) == attention:
        return
    if attention == PADDED:
        model[0].model.set_attn_implementation("sdpa" if model[0].model._supports_sdpa else "eager")
        return
    if not can_pack(model):
        raise ModelError(f"attention {attention}: this model cannot do without padding; use {PADDED}")
    name = FLASH
    if attention == VARLEN:
        name = _REGISTERED + kernel.__name__
        # Without a mask function of its own no mask is made, and none is needed.
        AttentionInterface.register(name, partial(packed_attention, kernel=kernel))
    try:
        model[0].model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise ModelError(f"attention {attention}: {error}") from error
    if model[0].model_forward_params is not None:
        # Arguments that the model's forward does not name, yet hands down to its attention.
        model[0].model_forward_params |= _PACKED_FEATURES


class CompiledForward:
    """A transformer's forward through torch.compile, for any batch and length; one that fails is undone, and said."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        self._transformer = transformer
        self._before = transformer.__dict__.get("forward")  # a hook of accelerate, say
        self._eager: Callable[..., Any] = transformer.forward
        self._compiled: Callable[..., Any] = torch.compile(self._eager, dynamic=True)

    def __call__(self, *args: Any, **features: Any) -> Any:  # noqa: ANN401
        """The transformer's own output."""
        try:
            return self._compiled(*args, **features)
        except Exception as error:  # whatever compiler and its tool chain raise
            if is_out_of_memory(error):
                raise
            log.warning("torch.compile failed, eager from here on (%s)", first_line(error))
        self.undo()
        return self._eager(*args, **features)

    def undo(self) -> None:
        """Give the transformer its own forward back."""
        self._transformer.__dict__.pop("forward", None)
        if self._before is not None:
            self._transformer.forward = self._before


def compiled_forward(model: SentenceTransformer) -> CompiledForward | None:
    """The model's compiled forward; None when it is eager."""
    forward = getattr(model[0], "model", model[0]).__dict__.get("forward")
    return forward if isinstance(forward, CompiledForward) else None


@dataclass(frozen=True)
class Machine:
    """What computes: the name of its processor or GPU, its CPU cores, and the CPU's flags."""

    name: str
    n_cores: int
    flags: frozenset[str]

    @property
    def has_bfloat16(self) -> bool:
        """Whether the CPU multiplies bfloat16; one without it does so many times slower than float32."""
        return bool(self.flags & BFLOAT16_FLAGS)


def cpu_flags(path: Path | None = None) -> frozenset[str]:
    """What the processor says it can do; nothing where the system does not tell. path: None = CPU_INFO."""
    return frozenset(_cpu_info("flags", path or CPU_INFO).split())


def this_machine(device: str) -> Machine:
    """The machine at hand, as one that computes on this device."""
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu_info("model name", CPU_INFO) or platform.processor()
    return Machine(name, os.cpu_count() or 1, cpu_flags())


def _cpu_info(field: str, path: Path) -> str:
    """What the first processor's entry says after this name; '' where it says nothing."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    return next((value.strip() for name, _, value in (line.partition(":") for line in lines) if name.strip() == field), "")


def has_cpp_compiler() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return bool(get_cpp_compiler())
    except Exception as error:  # torch's own error has moved between versions
        log.debug("no C++ compiler: %s", error)
        return False


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the machine itself, had no memory left for a tensor."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products of float32 in float32: neither TF32 on a GPU nor bfloat16 on a CPU, whatever a notebook has set."""
    backends: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]
    if not all(hasattr(backend, "fp32_precision") for backend in backends):
        with _exact_products_before_2_9():
            yield
        return
    # Not torch.get_float32_matmul_precision: it raises once anybody has set one of these, as transformers' enable_tf32 does.
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@contextmanager
def _exact_products_before_2_9() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
