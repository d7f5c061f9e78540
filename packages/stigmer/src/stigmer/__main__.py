"""`python -m stigmer` is the `stigmer` command."""

from __future__ import annotations

import sys

from stigmer.cli import main

if __name__ == "__main__":
    sys.exit(main())
