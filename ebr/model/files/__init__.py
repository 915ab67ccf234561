"""What a model folder holds: weights, modules, tokenizer, and what it says that it is."""

# Before sentence-transformers, which imports peft, and with it bitsandbytes.
from ebr.model.files import peft_import as peft_import
