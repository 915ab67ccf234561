"""Merge an adapter into its base: `ebr merge` by the name that users know."""

from ebr.cli import merge

raise SystemExit(merge())
