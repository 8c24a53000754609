"""A model directory and its manifest: read, verify, digest. Nothing but the standard library.

    bundle/
      manifest.json     what the model is, and every other file with its size and SHA-256
      model.onnx        features -> log-probabilities of tokens (of an indic-conformer: its graphs, as published)
      vocabulary.json   what each token spells, which tokens a language can use

The digest of the manifest's bytes names the bundle: the manifest holds the digest of every other file, so one
digest proves all of them. A bundle is either exactly what its manifest says or refused.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from predictor import verify
from predictor.errors import InvalidBundle
from predictor.verify import MANIFEST

FORMAT = "vani-bundle/1"
VOCABULARY = "vocabulary.json"
CTC, INDIC_CONFORMER = "ctc", "indic-conformer"  # the families

Spelling = Literal["text", "pieces", "bytes"]

# What a document of the wrong shape makes of the code below: refused, never a traceback.
_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class FrontEnd:
    """How samples become features. `kind` is "whisper-log-mel" or "nemo-log-mel" (see `predictor.features`).

    Audio shorter than `pad_seconds` is extended with silence to it: 30 where a model hears badly without what it was
    trained with.
    """

    kind: str
    mel_bins: int
    pad_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Graph:
    """A `ctc` network: an ONNX graph from features float32 [B, mel, T] and lengths int64 [B] to log-probabilities.

    `features`, `lengths`, `log_probs` and `tokens` are names in the graph. Without `tokens`, log_probs [B, T', tokens]
    has them all; with it, log_probs [B, T', K] are those of the K likeliest `tokens` [B, T', K], the likeliest first.
    `frame_seconds` is the time between two output frames; `precision` ("fp32", "fp16", "int8") tells how the weights
    are stored; `repeat_gap_frames` is how many blank frames may part two emissions of one spoken token (see
    `search.best_path`), measured for each network, 0 where plain CTC is right; `junk_prefix` are tokens that the
    network says before the text: each at most once, in this order, any of them left out. `weights` (safetensors, for
    the PyTorch engine), `ir` (OpenVINO's) and `language_models` (KenLM, by language) are files, where there are any;
    for `language_model_weight` and `word_bonus` see `predictor.language_model`.
    """

    file: str
    features: str
    lengths: str
    log_probs: str
    frame_seconds: float
    precision: str
    repeat_gap_frames: int = 0
    tokens: str = ""
    junk_prefix: tuple[int, ...] = ()
    weights: str = ""
    ir: str = ""
    language_models: dict[str, str] = field(default_factory=dict)
    language_model_weight: float = 0.5
    word_bonus: float = 1.0

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.file, self.weights, self.ir, *self.language_models.values())))


@dataclass(frozen=True, slots=True)
class ConformerGraphs:
    """The graphs of an `indic-conformer`, as they are published: files, of which the last joint nets are by language.

    `sos_id` starts the transducer's text; a frame has at most `max_symbols`. See `predictor.engine.conformer`.
    """

    encoder: str
    ctc_decoder: str
    rnnt_decoder: str
    joint_enc: str
    joint_pred: str
    joint_pre_net: str
    joint_post_nets: dict[str, str]
    frame_seconds: float
    precision: str
    sos_id: int
    max_symbols: int
    repeat_gap_frames: int = 0
    junk_prefix: tuple[int, ...] = ()
    language_models: dict[str, str] = field(default_factory=dict)
    language_model_weight: float = 0.5
    word_bonus: float = 1.0

    @property
    def files(self) -> tuple[str, ...]:
        joint = (self.joint_enc, self.joint_pred, self.joint_pre_net, *self.joint_post_nets.values())
        return (self.encoder, self.ctc_decoder, self.rnnt_decoder, *joint, *self.language_models.values())


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`tokens[i]` is what token i spells; `languages` maps a code to the ids that its text can use, blank included.

    `spelling` is how: "text" as it is, with " " between words; "pieces" SentencePiece's, where a word begins with ▁;
    "bytes" GPT-2's and Whisper's characters for bytes, with Ġ for a space. Where tokens of the checkpoint were left
    out, `original_ids[i]` is what it calls token i.
    """

    tokens: tuple[str, ...]
    blank_id: int
    languages: dict[str, tuple[int, ...]]
    spelling: Spelling = "text"
    original_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights come from: a repository and the commit or release of it."""

    repository: str
    revision: str
    licence: str


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified model directory. `digest` is "sha256:<hex>" of the manifest's bytes."""

    directory: Path
    digest: str
    name: str
    version: str
    family: str
    sample_rate_hz: int
    max_window_seconds: float
    front_end: FrontEnd
    graph: Graph | ConformerGraphs
    vocabulary: Vocabulary
    source: Source

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.vocabulary.languages)

    def path(self, file: str) -> Path:
        return self.directory / file


def read(directory: Path) -> Bundle:
    """Read the manifest and verify every file against it.

    Raises InvalidBundle with the name of each file that is missing, altered or not in the manifest.
    """
    manifest, digest = _read_manifest(directory)
    problems = list(verify.differences(directory, manifest, required=VOCABULARY))
    if problems:
        raise InvalidBundle(problems)
    try:
        return _parse(directory, digest, manifest)
    except _MALFORMED as error:
        raise InvalidBundle([f"{MANIFEST} or {VOCABULARY} does not follow {FORMAT}: {_describe(error)}"]) from error


def write(
    directory: Path,
    *,
    name: str,
    version: str,
    family: str,
    max_window_seconds: float,
    sample_rate_hz: int,
    front_end: FrontEnd,
    graph: Graph | ConformerGraphs,
    vocabulary: Vocabulary,
    source: Source,
) -> Bundle:
    """Make `directory`, which holds the graph already, a bundle: write vocabulary and manifest, then read it back."""
    content = {
        "tokens": vocabulary.tokens,
        "blank_id": vocabulary.blank_id,
        "languages": vocabulary.languages,
        "spelling": vocabulary.spelling,
        "original_ids": vocabulary.original_ids,
    }
    _write_json(directory / VOCABULARY, content)
    files = sorted(path for path in verify.files(directory) if path != MANIFEST)
    manifest = {
        "format": FORMAT,
        "name": name,
        "version": version,
        "family": family,
        "sample_rate_hz": sample_rate_hz,
        "max_window_seconds": max_window_seconds,
        "front_end": asdict(front_end),
        "graph": asdict(graph),
        "source": asdict(source),
        "files": [{"path": path, **verify.measure(directory / path)} for path in files],
    }
    _write_json(directory / MANIFEST, manifest)
    return read(directory)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _read_manifest(directory: Path) -> tuple[dict[str, Any], str]:
    try:
        content = (directory / MANIFEST).read_bytes()
    except OSError as error:
        raise InvalidBundle([f"{MANIFEST} cannot be read ({error.strerror})"]) from error
    try:
        manifest = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidBundle([f"{MANIFEST} is not JSON"]) from error
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise InvalidBundle([f"{MANIFEST} has the format {found!r}, and {FORMAT!r} is what can be read"])
    return manifest, "sha256:" + hashlib.sha256(content).hexdigest()


def _parse(directory: Path, digest: str, manifest: Mapping[str, Any]) -> Bundle:
    bundle = Bundle(
        directory=directory,
        digest=digest,
        name=manifest["name"],
        version=manifest["version"],
        family=manifest["family"],
        sample_rate_hz=manifest["sample_rate_hz"],
        max_window_seconds=manifest["max_window_seconds"],
        front_end=FrontEnd(**manifest["front_end"]),
        graph=_parse_graph(manifest["family"], manifest["graph"]),
        vocabulary=_parse_vocabulary(json.loads((directory / VOCABULARY).read_text(encoding="utf-8"))),
        source=Source(**manifest["source"]),
    )
    for part in (bundle, bundle.front_end, bundle.graph, bundle.source):
        _check_types(part)
    missing = set(bundle.graph.files) - {entry["path"] for entry in manifest["files"]}
    if missing:
        raise ValueError(f"{min(missing)!r}, which the graph needs, is not among its files")
    if not 1 <= bundle.max_window_seconds < math.inf or not 0 < bundle.graph.frame_seconds < math.inf:
        raise ValueError("max_window_seconds must be at least 1 and frame_seconds above 0, both finite")
    if bundle.graph.repeat_gap_frames < 0:
        raise ValueError("repeat_gap_frames must be at least 0")
    if not 0 <= bundle.front_end.pad_seconds <= bundle.max_window_seconds:
        raise ValueError("pad_seconds must lie between 0 and max_window_seconds")
    _check_ids("junk_prefix", bundle.graph.junk_prefix, bundle.vocabulary)
    return bundle


def _parse_graph(family: str, content: Mapping[str, Any]) -> Graph | ConformerGraphs:
    kinds: dict[str, type[Graph | ConformerGraphs]] = {CTC: Graph, INDIC_CONFORMER: ConformerGraphs}
    if family not in kinds:
        raise ValueError(f"the family {family!r} is none of {', '.join(kinds)}")
    return kinds[family](**{**content, "junk_prefix": tuple(content.get("junk_prefix", ()))})


def _check_types(part: Bundle | FrontEnd | Graph | ConformerGraphs | Source) -> None:
    kinds: dict[object, Any] = {str: str, int: int, float: int | float, dict[str, str]: dict}
    for each in fields(part):
        value = getattr(part, each.name)
        if not isinstance(value, kinds.get(each.type, object)):
            raise TypeError(f"{each.name} is of the wrong type")
        if isinstance(value, dict) and not all(isinstance(text, str) for text in value.values()):
            raise TypeError(f"{each.name} must hold texts")


def _check_ids(name: str, ids: tuple[int, ...], vocabulary: Vocabulary) -> None:
    if not all(isinstance(i, int) for i in ids):
        raise TypeError(f"{name}: token ids must be whole numbers")
    if ids and (min(ids) < 0 or max(ids) >= len(vocabulary.tokens)):
        raise ValueError(f"{name}: token ids must lie between 0 and {len(vocabulary.tokens) - 1}")


def _parse_vocabulary(content: Mapping[str, Any]) -> Vocabulary:
    vocabulary = Vocabulary(
        tokens=tuple(content["tokens"]),
        blank_id=content["blank_id"],
        languages={code: tuple(ids) for code, ids in content["languages"].items()},
        spelling=content.get("spelling", "text"),
        original_ids=tuple(content.get("original_ids", ())),
    )
    if not isinstance(content["tokens"], list) or not all(isinstance(t, str) for t in vocabulary.tokens):
        raise TypeError("tokens must be a list of texts")
    if not vocabulary.languages:
        raise ValueError("no language is listed")
    for code, ids in {"blank": (vocabulary.blank_id,), **vocabulary.languages}.items():
        _check_ids(code, ids, vocabulary)
        if vocabulary.blank_id not in ids:
            raise ValueError(f"{code}: the blank is not among its tokens")
    if vocabulary.spelling not in get_args(Spelling):
        raise ValueError(f"the spelling is none of {', '.join(get_args(Spelling))}")
    if vocabulary.original_ids and len(vocabulary.original_ids) != len(vocabulary.tokens):
        raise ValueError("original_ids must be as many as tokens")
    return vocabulary


def _describe(error: Exception) -> str:
    return f"{error} is not there" if isinstance(error, KeyError) else str(error)
