"""The file of API keys: names, hashes and limits, read and edited.

It is made to be a file or one value of a Kubernetes Secret. One key a line, `#` begins a comment:

    # name  hash of the key               audio seconds a minute; without it, no limit
    web     sha256:64 hexadecimal digits  600

A key is 256 random bits that we draw, so one round of SHA-256 is the right hash at rest: no dictionary holds such a
secret, and a slow password hash would slow down nobody but the server, at every request. Names are labels and may be
logged; a key and its hash never are.
"""

import hashlib
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

SECRET_PREFIX = "vani_"  # noqa: S105  (no secret, but what scanners for leaked ones can look for)
MAX_FILE_BYTES = 1 << 20  # what a Kubernetes Secret holds: some 14,000 keys
_SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_HASH = re.compile(r"sha256:([0-9A-Fa-f]{64})")
_LIMIT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?")  # so few digits that a float gives back what was written
_MAX_WORDS = 3


class InvalidKeys(ValueError):
    """The keys file cannot be used. The message names the line and, of all that is in it, the key's name at most."""


@dataclass(frozen=True, slots=True)
class Key:
    """An API key as the server knows it: `digest` is the SHA-256 of the secret, 32 bytes; a limit of None is none."""

    name: str
    digest: bytes = field(repr=False)
    audio_seconds_per_minute: float | None


def digest_of(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def read_name(text: str) -> str:
    """The name of a key; InvalidKeys for what can be none. Secrets cannot: one pasted there would end up in logs."""
    if not _NAME.fullmatch(text) or text.lower().startswith(SECRET_PREFIX):
        raise InvalidKeys(
            "a name is up to 63 letters (a-z, A-Z), digits, '.', '_' and '-', "
            f"begins with a letter or digit, and not with {SECRET_PREFIX!r} as keys do"
        )
    return text


def read_limit(text: str) -> float:
    """Audio seconds a minute; InvalidKeys where the text is no such number."""
    if not _LIMIT.fullmatch(text) or float(text) == 0:
        raise InvalidKeys("a limit is a number of audio seconds a minute above 0, with at most three decimals")
    return float(text)


def write_limit(audio_seconds_per_minute: float) -> str:
    return f"{audio_seconds_per_minute:.3f}".rstrip("0").rstrip(".")


def parse(data: bytes) -> tuple[Key, ...]:
    """The keys of a file, in its order; none where it holds only comments. Raises InvalidKeys for all else."""
    keys = []
    line_of: dict[str | bytes, int] = {}
    for number, line in enumerate(_text(data).split("\n"), 1):
        words = _words(line)
        if not words:
            continue
        try:
            key = _read_key(words)
        except InvalidKeys as error:
            raise InvalidKeys(f"line {number}: {error}") from None
        for what, value in (("name", key.name), ("hash", key.digest)):
            if value in line_of:
                raise InvalidKeys(f"line {number}: {key.name!r} has the {what} of the key in line {line_of[value]}")
            line_of[value] = number
        keys.append(key)
    return tuple(keys)


def _text(data: bytes) -> str:
    if len(data) > MAX_FILE_BYTES:
        raise InvalidKeys(f"it has more than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidKeys(f"line {number}: it is not UTF-8") from None


def _words(line: str) -> list[str]:
    return line.partition("#")[0].split()


def _read_key(words: list[str]) -> Key:
    name = read_name(words[0])
    found = _HASH.fullmatch(words[1]) if len(words) > 1 else None
    if not found:
        raise InvalidKeys(f"{name!r} needs a hash after its name: sha256: and 64 hexadecimal digits")
    if len(words) > _MAX_WORDS:
        raise InvalidKeys(f"{name!r} has more than a hash and a limit after its name")
    try:
        limit = read_limit(words[2]) if words[2:] else None
    except InvalidKeys as error:
        raise InvalidKeys(f"{name!r} has a wrong limit: {error}") from None
    return Key(name, bytes.fromhex(found[1]), limit)


def write(key: Key) -> str:
    """The key's line of the file."""
    limit = "" if key.audio_seconds_per_minute is None else f" {write_limit(key.audio_seconds_per_minute)}"
    return f"{key.name} sha256:{key.digest.hex()}{limit}"


def read(path: Path) -> tuple[Key, ...]:
    """The keys of the file at `path`; InvalidKeys also where it cannot be read."""
    try:
        with path.open("rb") as file:
            return parse(file.read(MAX_FILE_BYTES + 1))
    except OSError as error:
        raise InvalidKeys(f"it cannot be read: {error.strerror}") from error


def add(path: Path, name: str, audio_seconds_per_minute: float | None) -> str:
    """Draw a new key, append its hash to the file, which is made if need be, and return the secret, kept nowhere.

    Raises InvalidKeys where the file or the name cannot be used, or the file cannot be written.
    """
    secret = SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
    line = write(Key(read_name(name), digest_of(secret), audio_seconds_per_minute))

    def append(text: str) -> str:
        if any(_words(old)[:1] == [name] for old in text.split("\n")):
            raise InvalidKeys(f"there is a key {name!r} already")
        if text and not text.endswith("\n"):
            text += "\n"
        return f"{text}{line}\n"

    _rewrite(path, append, create=True)
    return secret


def revoke(path: Path, name: str) -> None:
    """Take the key's line out of the file and leave the rest as it is. Raises as `add` does."""

    def remove(text: str) -> str:
        lines = text.split("\n")
        kept = [line for line in lines if _words(line)[:1] != [name]]
        if len(kept) == len(lines):
            raise InvalidKeys(f"there is no key {name[:40]!r}")
        return "\n".join(kept)

    _rewrite(path, remove, create=False)


def _rewrite(path: Path, edit: Callable[[str], str], *, create: bool) -> None:
    """Put a new file in the place of the old, whole or not at all, with the old one's owner and mode, or 0600.

    The new file is the lock too: of two changes at once one would undo the other, and a revoked key would be back.
    """
    path = path.resolve()  # not the link, but what it leads to, is replaced
    new = path.with_name(path.name + ".new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidKeys(f"another change is under way; if none is, remove {new.name}") from None
    except OSError as error:
        raise InvalidKeys(f"it cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            old = None if create and not path.exists() else path.stat()
            edited = edit(_text(path.read_bytes() if old else b"")).encode()
            parse(edited)
            if old:
                _own_as(file.fileno(), old)
            file.write(edited)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException as error:
        new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InvalidKeys(f"it cannot be changed: {error.strerror}") from error
        raise


def _own_as(descriptor: int, old: os.stat_result) -> None:
    """The server must be able to read what somebody else has edited; OSError where that cannot be had."""
    made = os.fstat(descriptor)
    if (made.st_uid, made.st_gid) != (old.st_uid, old.st_gid):
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, old.st_mode & 0o777)
