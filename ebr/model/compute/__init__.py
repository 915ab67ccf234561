"""How a model computes: precision, batches, attention, and the engine that embeds."""

# Before sentence-transformers, which imports peft, and with it bitsandbytes.
from ebr.model.files import peft_import as peft_import
