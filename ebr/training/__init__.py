"""Examples → a better model."""

# Before sentence-transformers, which imports peft, and with it bitsandbytes.
from ebr.model import peft_import as peft_import
