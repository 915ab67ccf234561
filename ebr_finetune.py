"""Fine-tune from anchor / positive / negative files: `ebr finetune` by the name that users know."""

from ebr.cli import finetune

raise SystemExit(finetune())
