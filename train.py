"""Fine-tune from query / pos / neg JSONL: `ebr train` by the name that users know."""

from ebr.cli import train

raise SystemExit(train())
