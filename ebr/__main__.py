"""`python -m ebr`."""

from ebr.cli import main

raise SystemExit(main())
