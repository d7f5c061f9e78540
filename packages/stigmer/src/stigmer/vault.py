"""Stored secrets: in the keyring of the operating system where one is usable, else encrypted in STIGMER_HOME.

The file `secrets` names every secret and says where it is kept; the value of one that is not in the keyring stands
there too, sealed with AES-256-GCM. The key for that is the file `secrets.key` beside it: it protects a copy of the one
file without the other, not from somebody who can read both.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Literal, NamedTuple, TypeVar

from graphton.models import PROVIDERS, Provider

from stigmer import config, redact
from stigmer.config.edit import write_atomically
from stigmer.errors import StigmerError
from stigmer.home import Home

__all__ = ["Kept", "Stored", "Vault", "VaultError", "served_by"]

Place = Literal["keyring", "file"]
Answer = TypeVar("Answer")

_READ_SECONDS = 5.0
"""How long a keyring may take to hand out a value: one that is locked asks somebody, who may not be there."""
_WRITE_SECONDS = 60.0


class VaultError(StigmerError):
    """The stored secrets cannot be read or written."""

    code = "secrets"


class Kept(NamedTuple):
    """A stored secret, without its value."""

    name: str
    place: Place


class Stored(NamedTuple):
    """Where a secret went; `why_not` tells why the keyring was not taken."""

    place: Place
    why_not: str = ""


def served_by(name: str) -> tuple[Provider, ...]:
    """The providers that a stored secret of this name serves, each at its own origins only."""
    return tuple(row for row in PROVIDERS.values() if row.key_variable == name and row.origins)


class Vault:
    """The secrets of one home. Nothing is imported, read or made before it is needed."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self.path = home.path / "secrets"
        self.key_path = home.path / "secrets.key"
        self._read: tuple[object, config.Layer] | None = None

    def kept(self) -> list[Kept]:
        """The names, in order, and where each value is."""
        return [Kept(name, _place(row)) for name, row in sorted(self._rows().items())]

    def put(self, name: str, value: str) -> Stored:
        """Keeps a value under a name; one that was kept before is replaced."""
        redact.remember([value])
        self._home.create()
        with self._locked():
            rows = self._rows()
            why_not = _into_keyring(self._service, name, value)
            if not why_not:
                rows[name] = {"keyring": True}
            else:
                if _place(rows.get(name, {})) == "keyring":
                    _out_of_keyring(self._service, name)
                rows[name] = self._sealed(name, value)
            self._write(rows)
        return Stored("file" if why_not else "keyring", why_not)

    def drop(self, name: str) -> bool:
        """Forgets a secret; False when there was none."""
        with self._locked():
            rows = self._rows()
            row = rows.pop(name, None)
            if row is None:
                return False
            if _place(row) == "keyring":
                _out_of_keyring(self._service, name)
            self._write(rows)
        return True

    def layer(self) -> config.Layer | None:
        """The cascade's layer of stored secrets; None where there are none. What cannot be read is a notice.

        Read again when the file has changed, or when the last reading missed something. The caller has the values
        masked (`redact.remember`): this may run in a thread.
        """
        stamp = self._stamp()
        if stamp is None:
            return None
        if self._read is None or self._read[0] != stamp or self._read[1].notices:
            self._read = (stamp, self._layer())
        return self._read[1]

    @property
    def fresh(self) -> bool:
        """Whether `layer` would answer from memory, without asking a keyring."""
        stamp = self._stamp()
        return stamp is None or (
            self._read is not None and self._read[0] == stamp and not self._read[1].notices
        )

    def _layer(self) -> config.Layer:
        values: dict[str, str] = {}
        faults: list[str] = []
        try:
            rows = self._rows()
        except VaultError as error:
            rows = {}
            faults.append(error.message)
        in_keyring = [name for name, row in rows.items() if _place(row) == "keyring"]
        for name in rows.keys() - set(in_keyring):
            try:
                values[name] = self._opened(name, rows[name])
            except VaultError as error:
                faults.append(error.message)
        found, fault = _from_keyring(self._service, in_keyring) if in_keyring else ({}, "")
        for name in in_keyring:
            value = found.get(name)
            if value is None:
                reason = fault or "it is not there any more"
                faults.append(f"the secret {name} is in the OS keyring and cannot be read: {reason}")
            else:
                values[name] = value
        return replace(config.layer_from_secrets(values), notices=tuple(sorted(faults)))

    # The file

    @property
    def _service(self) -> str:
        """Homes of one user do not share their secrets."""
        return f"stigmer {os.path.realpath(self._home.path)}"

    def _stamp(self) -> object:
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _rows(self) -> dict[str, dict[str, Any]]:
        try:
            rows = json.loads(self.path.read_text("utf-8"))["secrets"]
            return {str(name): dict(row) for name, row in rows.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._unreadable((error.strerror or "it cannot be opened").lower()) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._unreadable("it is not what stigmer wrote") from error

    def _unreadable(self, reason: str) -> VaultError:
        return VaultError(
            f"the stored secrets in {str(self.path)!r} cannot be read: {reason}",
            hint=f"mv {self.path} {self.path}.broken, then set them again: stigmer secret set NAME",
        )

    def _write(self, rows: Mapping[str, Any]) -> None:
        try:
            write_atomically(self.path, json.dumps({"version": 1, "secrets": rows}, indent=1) + "\n")
        except OSError as error:
            raise VaultError(f"{str(self.path)!r} cannot be written: {error.strerror}") from error

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time. The folder itself is the lock, so that none is left over."""
        fd = os.open(self._home.create().path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    # Sealing

    def _sealed(self, name: str, value: str) -> dict[str, str]:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(12)
        sealed = AESGCM(self._key(make=True)).encrypt(nonce, value.encode(), name.encode())
        return {"nonce": base64.b64encode(nonce).decode(), "sealed": base64.b64encode(sealed).decode()}

    def _opened(self, name: str, row: Mapping[str, Any]) -> str:
        """The value; bound to its name, so that no row can stand in for another."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            nonce, sealed = (base64.b64decode(row[part], validate=True) for part in ("nonce", "sealed"))
            return AESGCM(self._key(make=False)).decrypt(nonce, sealed, name.encode()).decode()
        except (InvalidTag, ValueError, KeyError, TypeError) as error:
            raise VaultError(
                f"the stored secret {name} cannot be opened with {str(self.key_path)!r}: one of the two was changed; "
                f"set it again: stigmer secret set {name}"
            ) from error

    def _key(self, *, make: bool) -> bytes:
        try:
            found = base64.b64decode(self.key_path.read_text("ascii").strip(), validate=True)
        except FileNotFoundError:
            if not make:
                raise VaultError(
                    f"the key {str(self.key_path)!r} of the stored secrets is not there; set them again: "
                    "stigmer secret set NAME"
                ) from None
            found = os.urandom(32)
            write_atomically(self.key_path, base64.b64encode(found).decode() + "\n")
        except (OSError, ValueError) as error:
            raise VaultError(f"the key {str(self.key_path)!r} cannot be read: {error}") from error
        if len(found) != 32:
            raise VaultError(f"the key {str(self.key_path)!r} is not one of stigmer's")
        return found


def _place(row: Mapping[str, Any]) -> Place:
    return "keyring" if row.get("keyring") else "file"


# The keyring of the operating system


def _into_keyring(service: str, name: str, value: str) -> str:
    """Puts a value there and reads it back; "" when it is there, else why not."""

    def work(ring: Any) -> bool:
        ring.set_password(service, name, value)
        return bool(ring.get_password(service, name) == value)

    kept, fault = _asked(work, _WRITE_SECONDS)
    return fault or ("" if kept else "the OS keyring did not keep the value")


def _from_keyring(service: str, names: Sequence[str]) -> tuple[dict[str, str | None], str]:
    """The values under these names, and why there are none: a keyring that does not answer is asked once."""
    found, fault = _asked(
        lambda ring: {name: ring.get_password(service, name) for name in names}, _READ_SECONDS
    )
    return found or {}, fault


def _out_of_keyring(service: str, name: str) -> None:
    """Takes a value out where it can: the row that named it goes in any case."""
    _asked(lambda ring: ring.delete_password(service, name), _WRITE_SECONDS)


def _asked(work: Callable[[Any], Answer], limit: float) -> tuple[Answer | None, str]:
    """What the keyring answers, and what went wrong. It may ask somebody, and must not hold us up for ever."""
    answers: list[tuple[Answer | None, str]] = []

    def ask() -> None:
        # Whatever a backend raises (a bus that is not there, a library that is missing) means: not usable.
        try:
            answers.append((work(_usable()), ""))
        except Exception as error:
            said = str(error).strip().splitlines()
            answers.append((None, redact.scrub(said[0]) if said else type(error).__name__))

    asking = threading.Thread(target=ask, daemon=True, name="asks the keyring")
    asking.start()
    asking.join(limit)
    return answers[0] if answers else (None, f"the OS keyring did not answer in {limit:.0f} seconds")


def _usable() -> Any:
    """The backend that the keyring package chose, where it is one that really keeps secrets."""
    import keyring
    from keyring.errors import KeyringError

    ring = keyring.get_keyring()
    priority = 0.0
    with suppress(RuntimeError):  # How a backend says that it cannot work here.
        priority = float(ring.priority)
    if priority < 1:
        raise KeyringError("there is no usable OS keyring here")
    return ring
