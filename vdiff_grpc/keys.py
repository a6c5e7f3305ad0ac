"""API keys at rest: the file's format, and a ring of keys that follows the file.

The file is JSON, one object per caller:

    {"keys": [{"name": "search", "sha256": ["<64 hex digits>"], "rights": ["generate"],
               "requests_per_minute": 600, "tokens_per_minute": 200000}]}

Only hashes are kept. Plain SHA-256 is the right one here: a key is 256 random bits, so there is no
dictionary that a slow hash would have to slow down, and every call pays for the hash.
Knows neither gRPC nor limits' meaning.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from vdiff_grpc.errors import VdiffError

logger = logging.getLogger(__name__)

GENERATE = "generate"
INSPECT = "inspect"
RIGHTS = (GENERATE, INSPECT)

MAX_PRIORITY = 100  # and as far below 0; the engine's limit

_PREFIX = "vdiff_"
_RANDOM_BYTES = 32
_MAX_KEY_CHARS = 512
_MAX_HASHES = 4
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_CHECK_EVERY_S = 1.0


class KeyFileError(VdiffError):
    """The key file cannot be read or changed; names file, entry and field, never a hash."""

    reason = "KEY_FILE"


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One caller. Limits: None is no limit."""

    name: str
    sha256: tuple[str, ...]  # of its keys: more than one while a key is replaced; hex
    rights: tuple[str, ...] = (GENERATE,)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    min_priority: int | None = None  # None: 0, so that nobody goes before the others
    latency_budget_s: float | None = None  # of its requests that say none: they may be hurried
    created: str = ""  # for people


def new_key() -> str:
    """A key to hand out: 256 random bits, with a prefix that secret scanners can find."""
    return _PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def check_name(name: str) -> str:
    """Raises ValueError. A name stands in logs and metrics as it is."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"name ({name[:80]!r}) must be 1 to 64 letters, digits, '.', '_' or '-'")
    return name


def load(path: str | Path) -> tuple[KeyEntry, ...]:
    """All entries. Raises KeyFileError."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise KeyFileError(f"{path}: is not UTF-8") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise KeyFileError(f"{path}: is not JSON: {error}") from None
    if not isinstance(document, dict) or set(document) != {"keys"}:
        raise KeyFileError(f'{path}: must be {{"keys": [...]}} and nothing else')
    listed = document["keys"]
    if not isinstance(listed, list):
        raise KeyFileError(f"{path}: keys must be a list")
    entries = []
    for index, value in enumerate(listed):
        try:
            entries.append(_entry(value))
        except ValueError as error:
            raise KeyFileError(f"{path}: keys[{index}]: {error}") from None
    names = [entry.name for entry in entries]
    hashes = [one for entry in entries for one in entry.sha256]
    for name in names:
        if names.count(name) > 1:
            raise KeyFileError(f"{path}: the name {name!r} is there twice")
    if len(set(hashes)) < len(hashes):
        raise KeyFileError(f"{path}: two entries have the same sha256")
    return tuple(entries)


def save(path: str | Path, entries: Sequence[KeyEntry]) -> None:
    """Replaces the file in one step; a new one is for its owner alone. Raises KeyFileError."""
    path = Path(path)
    text = json.dumps({"keys": [_plain(entry) for entry in entries]}, indent=2) + "\n"
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        number, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(number, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(number)
            Path(name).chmod(mode)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from None


class KeyRing:
    """The keys that are valid now.

    The file is looked at once a second at most, by whoever asks; what cannot be read leaves the
    keys as they were, and is logged once. clock: seconds, never going back.
    """

    def __init__(
        self,
        path: str | Path,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[KeyEntry], None] = lambda entry: None,
    ) -> None:
        """Raises KeyFileError. check: raises it for entries that its owner cannot honour."""
        self._path = Path(path)
        self._clock = clock
        self._check = check
        self._seen = self._signature()
        self._hashes = self._load()
        self._next_check = clock() + _CHECK_EVERY_S

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, key: str) -> KeyEntry | None:
        """Whose key this is. Takes the same time wherever, and whether, it is in the file."""
        self._follow()
        if len(key) > _MAX_KEY_CHARS:
            return None
        given = digest(key)
        found = None
        for known, entry in self._hashes:
            if hmac.compare_digest(known, given):
                found = entry
        return found

    def _follow(self) -> None:
        now = self._clock()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_EVERY_S
        # Taken before the file is read: a change during the read is then seen the next time.
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._hashes = self._load()
        except KeyFileError as error:
            logger.error("the API keys stay as they were: %s", error)
        else:
            logger.info("read %d API keys anew", len(self._hashes))

    def _load(self) -> tuple[tuple[str, KeyEntry], ...]:
        entries = load(self._path)
        for entry in entries:
            self._check(entry)
        return tuple((one, entry) for entry in entries for one in entry.sha256)

    def _signature(self) -> tuple[int, ...] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino, status.st_dev


def _plain(entry: KeyEntry) -> dict[str, Any]:
    values = {field.name: getattr(entry, field.name) for field in fields(entry)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
        if value not in (None, "")
    }


def _entry(value: Any) -> KeyEntry:
    """Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    known = [field.name for field in fields(KeyEntry)]
    for name in value:
        if name not in known:
            raise ValueError(f"{name[:80]!r} is not a field; fields are {', '.join(known)}")
    for name in ("name", "sha256"):
        if name not in value:
            raise ValueError(f"{name} is missing")
    if not isinstance(value["name"], str):
        raise ValueError("name must be a string")
    name = check_name(value["name"])
    created = value.get("created", "")
    if not isinstance(created, str):
        raise ValueError(f"created of {name!r} must be a string")
    hashes = _strings(value["sha256"])
    if hashes is None or not 1 <= len(hashes) <= _MAX_HASHES or not all(map(_is_hash, hashes)):
        raise ValueError(f"sha256 of {name!r} must be 1 to {_MAX_HASHES} strings of 64 hex digits")
    rights = _strings(value.get("rights", [GENERATE]))
    if rights is None or not set(rights) <= set(RIGHTS):
        raise ValueError(f"rights of {name!r} must be a list of {', '.join(RIGHTS)}")
    limits = {}
    for limit in ("requests_per_minute", "tokens_per_minute"):
        number = value.get(limit)
        if number is not None and (type(number) is not int or number < 1):
            raise ValueError(f"{limit} of {name!r} must be a whole number, at least 1")
        limits[limit] = number
    priority = value.get("min_priority")
    if priority is not None and (type(priority) is not int or abs(priority) > MAX_PRIORITY):
        least, most = -MAX_PRIORITY, MAX_PRIORITY
        raise ValueError(f"min_priority of {name!r} must be a whole number from {least} to {most}")
    budget_s = value.get("latency_budget_s")
    if budget_s is not None and (type(budget_s) not in (int, float) or not 0 < budget_s < math.inf):
        raise ValueError(f"latency_budget_s of {name!r} must be a number above 0")
    return KeyEntry(
        name,
        hashes,
        rights,
        created=created,
        min_priority=priority,
        latency_budget_s=budget_s,
        **limits,
    )


def _strings(value: Any) -> tuple[str, ...] | None:
    """A list's strings, or None for anything else."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        return None
    return tuple(value)


def _is_hash(text: str) -> bool:
    return _HASH.fullmatch(text) is not None
