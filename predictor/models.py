"""The models of one serving process: by name and version, loaded and unloaded while it serves."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from predictor import telemetry, verify
from predictor.errors import UnknownModel
from predictor.recognizer import Recognizer

_MAX_DIGITS = 20  # of a number in a version: more is a date and a time at most, or nonsense that takes long to read

logger = logging.getLogger("vani")


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """A Recognizer under the name that routes know it by."""

    name: str
    recognizer: Recognizer
    load_seconds: float

    @property
    def version(self) -> str:
        return self.recognizer.bundle.version

    @property
    def digest(self) -> str:
        return self.recognizer.bundle.digest


@dataclass(frozen=True, slots=True)
class Entry:
    """A model version that is served, or could be loaded: `state` READY or UNAVAILABLE, as Triton's index says."""

    name: str
    version: str
    state: str
    reason: str = ""


class Models:
    """Names and versions of what is served. A version of a name is one bundle; the highest is what a bare name means.

    `load_bundle` makes a Recognizer of a directory. `repository` holds further bundles, a directory each, which `load`
    takes from by the names in their manifests. Lookups belong to the event loop; loading may be done in a thread.
    """

    def __init__(self, load_bundle: Callable[[Path], Recognizer], repository: Path | None = None) -> None:
        self._load_bundle, self.repository = load_bundle, repository
        self._models: dict[str, dict[str, Model]] = {}

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._models.values() for model in versions.values())

    @property
    def default(self) -> Model | None:
        """What answers a request that names no model: the first name's highest version."""
        return next((_highest(versions) for versions in self._models.values()), None)

    @property
    def only(self) -> Model | None:
        """The model, where there is just one: it answers whatever is answered."""
        models = list(self)
        return models[0] if len(models) == 1 else None

    def find(self, name: str | None = None, version: str | None = None) -> Model:
        """Raises UnknownModel."""
        versions = self._models.get(name, {}) if name else {m.version: m for m in [self.default] if m}
        model = versions.get(version) if version else _highest(versions)
        if model is None:
            served = dict.fromkeys(_label(m.name, m.version if version else None) for m in self)
            raise UnknownModel(_label(name or "default", version), served)
        return model

    def versions(self, name: str) -> list[str]:
        """The served versions of a name, the lowest first."""
        return sorted(self._models.get(name, {}), key=_order)

    def read(self, directory: Path, name: str | None = None) -> Model:
        """Verify and load a bundle, without serving it yet; raises InvalidBundle."""
        started = time.perf_counter()
        recognizer = self._load_bundle(directory)
        return Model(name or recognizer.bundle.name, recognizer, time.perf_counter() - started)

    def add(self, model: Model) -> None:
        """Serve a model, in the place of one of the same name and version."""
        replaced = self._models.setdefault(model.name, {}).get(model.version)
        self._models[model.name][model.version] = model
        if replaced and replaced.digest != model.digest:
            telemetry.unloaded(replaced.name, replaced.version, replaced.digest)
        telemetry.loaded(model.name, model.version, model.digest, model.load_seconds)
        logger.info("serving %s version %s (%s)", model.name, model.version, model.digest[:19])

    def remove(self, name: str) -> None:
        """Serve no version of a name any more; requests that have begun are finished. Raises UnknownModel."""
        if name not in self._models:
            raise UnknownModel(name, self._models)
        for model in self._models.pop(name).values():
            telemetry.unloaded(model.name, model.version, model.digest)
            logger.info("no longer serving %s version %s", model.name, model.version)

    def locate(self, name: str, version: str | None = None) -> Path:
        """The repository's bundle of that name, in that version or the highest; raises UnknownModel."""
        found = {held: path for held, path in self._stored(name) if version in (None, held)}
        if not found:
            raise UnknownModel(_label(name, version), sorted({held for (held, _), _ in self._bundles()}))
        return found[max(found, key=_order)]

    def index(self) -> list[Entry]:
        """What is served, and what the repository holds besides."""
        served = {(model.name, model.version) for model in self}
        stored = {held for held, _ in self._bundles()} - served
        ready = [Entry(name, version, "READY") for name, version in served]
        return sorted(
            [*ready, *(Entry(name, version, "UNAVAILABLE", "not loaded") for name, version in stored)],
            key=lambda entry: (entry.name, _order(entry.version)),
        )

    def _stored(self, name: str) -> list[tuple[str, Path]]:
        return [(version, path) for (held, version), path in self._bundles() if held == name]

    def _bundles(self) -> Iterator[tuple[tuple[str, str], Path]]:
        """(name, version) and directory of each bundle in the repository, as its manifest says, not yet verified."""
        if self.repository is None or not self.repository.is_dir():
            return
        for manifest in sorted(self.repository.glob(f"*/{verify.MANIFEST}")):
            try:
                yield _identity(manifest), manifest.parent
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                logger.warning("%s in the model repository is no manifest", manifest.parent.name)


def _identity(manifest: Path) -> tuple[str, str]:
    content = json.loads(manifest.read_bytes())
    name, version = content["name"], content["version"]
    if not (isinstance(name, str) and isinstance(version, str)):
        raise TypeError("a name and a version are texts")
    return name, version


def _highest(versions: dict[str, Model]) -> Model | None:
    if len(versions) == 1:  # of many, mostly; and every request asks
        return next(iter(versions.values()))
    return versions[max(versions, key=_order)] if versions else None


def _label(name: str, version: str | None) -> str:
    return f"{name} version {version}" if version else name


def _order(version: str) -> tuple[list[tuple[int, int, str]], bool, list[tuple[int, int, str]]]:
    """Versions as people count them: 2 before 10, 1.9 before 1.10, and 2.0-rc1 before 2.0."""
    release, dash, candidate = version.partition("-")
    return _counted(release), not dash, _counted(candidate)


def _counted(text: str) -> list[tuple[int, int, str]]:
    parts = re.split(r"[.\-+_]", text)
    return [(0, int(part), "") if part.isdecimal() and len(part) <= _MAX_DIGITS else (1, 0, part) for part in parts]
