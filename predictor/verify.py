"""Is a directory exactly what its manifest lists? Every file by size and SHA-256, and no file more. [stdlib only]"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

MANIFEST = "manifest.json"

_IGNORED = frozenset({"lost+found"})  # besides dot files: what volumes and store clients leave behind


def differences(directory: Path, manifest: Mapping[str, Any], required: str) -> Iterator[str]:
    """One sentence for each file that is not what the manifest says, or that is `required` and not in it."""
    listed = set()
    entries = manifest.get("files")
    for entry in entries if isinstance(entries, list) else []:
        try:
            path, size_bytes, sha256 = str(entry["path"]), int(entry["size_bytes"]), str(entry["sha256"])
        except (KeyError, TypeError, ValueError, OverflowError):
            yield f"{MANIFEST} lists a file without path, size_bytes and sha256"
            continue
        listed.add(path)
        yield from _difference(directory, path, size_bytes, sha256)
    if required not in listed:
        yield f"{MANIFEST} does not list {required}"
    yield from (f"{path} is not in the manifest" for path in sorted({*files(directory)} - listed - {MANIFEST}))


def _difference(directory: Path, path: str, size_bytes: int, sha256: str) -> Iterator[str]:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts:
        yield f"{path} lies outside the bundle"
        return
    try:
        actual_bytes = (directory / pure).stat().st_size
        if actual_bytes != size_bytes:
            yield f"{path} has {actual_bytes} bytes, the manifest says {size_bytes}"
        elif measure(directory / pure)["sha256"] != sha256:
            yield f"{path} does not have the manifest's SHA-256"
    except FileNotFoundError:
        yield f"{path} is missing"
    except OSError as error:
        yield f"{path} cannot be read ({error.strerror})"
    except ValueError:  # a NUL or a lone surrogate: no file can be called so
        yield f"{path!r} is not the name of a file"


def measure(path: Path) -> dict[str, int | str]:
    """What a manifest says of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"size_bytes": path.stat().st_size, "sha256": digest}


def files(directory: Path) -> Iterator[str]:
    """Every file below `directory` as a POSIX path relative to it, leaving out dot files and volume artefacts."""
    for folder, folders, names in os.walk(directory):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in _IGNORED]
        for name in names:
            if not name.startswith("."):
                yield (Path(folder) / name).relative_to(directory).as_posix()
