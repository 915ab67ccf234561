"""peft, imported without bitsandbytes: that takes a second and complains about kernels, and only quantised weights need it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_BITSANDBYTES = "bitsandbytes"


@contextmanager
def bitsandbytes_hidden() -> Iterator[None]:
    """Within the block peft finds no bitsandbytes, unless somebody imported it already: then weights may be quantised.

    For importing peft and for attaching an adapter, both of which would import it at once, whatever the weights are.
    """
    if _BITSANDBYTES in sys.modules:
        yield
        return
    modules: dict[str, Any] = sys.modules
    modules[_BITSANDBYTES] = None  # what Python itself takes for "is not there"
    try:
        yield
    finally:
        del modules[_BITSANDBYTES]
        # What they found is kept for good otherwise, also for a quantised base that comes later.
        from peft import import_utils
        from transformers.utils import is_bitsandbytes_available

        for answer in (import_utils.is_bnb_available, import_utils.is_bnb_4bit_available, is_bitsandbytes_available):
            answer.cache_clear()


with bitsandbytes_hidden():
    import peft
    from peft import (
        LoraConfig,
        LoraModel,
        PeftConfig,
        get_peft_model_state_dict,
        set_peft_model_state_dict,
    )
    from peft.tuners.lora import Linear as LoraLinear
    from peft.tuners.lora import LoraLayer
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.tuners.tuners_utils import check_target_module_exists
    from peft.utils.other import get_pattern_key

__all__ = [
    "LoraConfig",
    "LoraLayer",
    "LoraLinear",
    "LoraModel",
    "PeftConfig",
    "TrainableTokensLayer",
    "bitsandbytes_hidden",
    "check_target_module_exists",
    "get_pattern_key",
    "get_peft_model_state_dict",
    "import_bitsandbytes",
    "set_peft_model_state_dict",
]


def import_bitsandbytes() -> None:
    """Import it for quantised weights, and let peft know. Raises ImportError when it is absent."""
    # It complains of a kernel for weights packed for inference, and ours never are: see quantization.keep_trainable.
    complaints = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = complaints.level
    complaints.setLevel(logging.ERROR)
    try:
        import bitsandbytes
    finally:
        complaints.setLevel(level)
    # The one module of peft that asks when it is imported itself, and never again.
    peft.helpers.bnb = bitsandbytes
