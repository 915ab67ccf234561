"""One encoder and what is attached to it."""

# Before sentence-transformers, which imports peft, and with it bitsandbytes.
from ebr.model import peft_import as peft_import
