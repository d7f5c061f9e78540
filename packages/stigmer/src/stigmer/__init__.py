"""Run AI agents: on a laptop with a local model and no set-up, and in production. Names are loaded when used."""

from __future__ import annotations

TYPE_CHECKING = False  # As in typing, whose import takes so long that a Ctrl-C would meet it.
if TYPE_CHECKING:
    from stigmer.client import Client as Client
    from stigmer.daemon import ensure_running as ensure_running
    from stigmer.home import Address as Address
    from stigmer.home import Home as Home

__version__ = "0.1.0"
"""Both packages share one version; a test compares it with the installed one (asking costs 20 ms)."""

__all__ = ["Address", "Client", "Home", "__version__", "ensure_running"]

_WHERE = {
    "Address": "stigmer.home",
    "Client": "stigmer.client",
    "Home": "stigmer.home",
    "ensure_running": "stigmer.daemon",
}


def __getattr__(name: str) -> object:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
