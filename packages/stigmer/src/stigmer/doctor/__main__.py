"""`python -m stigmer.doctor`: the examiner. It reads what to look at from standard input and prints a check a line."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    from stigmer.doctor._examiner import main

    sys.exit(main())
