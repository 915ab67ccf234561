"""The training loop, its checkpoints and what watches over it."""

# Before sentence-transformers, which imports peft, and with it bitsandbytes.
from ebr.model.files import peft_import as peft_import
