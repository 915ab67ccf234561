"""One encoder: loaded, saved, its lengths, pooling, prompts and identity."""

# Before sentence-transformers, which imports peft, and with it bitsandbytes.
from ebr.model.files import peft_import as peft_import
