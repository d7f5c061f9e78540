"""What `stigmer doctor` looks at: is everything there that the default run needs, and what helps where it is not.

`_local` and its neighbours look at this machine. What talks to servers, or could crash (llama.cpp), is looked at by a
process of its own, `python -m stigmer.doctor` (`_examiner.py`): the commands never reach a provider client.
"""

from __future__ import annotations

from stigmer.doctor._check import AREAS, FAIL, OK, SKIP, WARN, Check, check

__all__ = ["AREAS", "FAIL", "OK", "SKIP", "WARN", "Check", "check"]
