"""Where the work is done: processes of this machine, or Ray."""

# Before sentence-transformers, which imports peft, and with it bitsandbytes.
from ebr.model.files import peft_import as peft_import
