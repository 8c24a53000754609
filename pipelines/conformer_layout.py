"""IndicConformer's published layout: read, and every assumption about it checked. None of its code is run.

assets/  28 graphs, encoder.onnx with a file for each larger tensor, vocab.json, language_masks.json
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx

from pipelines.errors import Permanent
from pipelines.findings import Finding
from predictor.bundle import Vocabulary
from predictor.engine import conformer_graphs as graphs
from predictor.engine.conformer_graphs import Signature

SHARED = ("encoder", "ctc_decoder", "rnnt_decoder", "joint_enc", "joint_pred", "joint_pre_net")
POST_NET = "joint_post_net_{}"
# The languages in the order of their tokens, 256 each.
SPANS = (
    *("as", "bn", "brx", "doi", "kok", "gu", "hi", "kn", "ks", "mai", "ml"),
    *("mr", "mni", "ne", "or", "pa", "sa", "sat", "sd", "ta", "te", "ur"),
)
LOCAL_TOKENS = 256
TOKENS = len(SPANS) * LOCAL_TOKENS
BLANK = SOS = (
    TOKENS  # one id for both, after all tokens; config.json's SOS, 256, is a mistake that its own code ignores
)

_SIGNATURES = dict(
    zip(
        SHARED,
        (
            graphs.ENCODER,
            graphs.CTC_DECODER,
            graphs.RNNT_DECODER,
            graphs.JOINT_ENC,
            graphs.JOINT_PRED,
            graphs.JOINT_PRE_NET,
        ),
        strict=True,
    )
)
_TYPES = {onnx.TensorProto.FLOAT: "float", onnx.TensorProto.INT32: "int32", onnx.TensorProto.INT64: "int64"}


@dataclass(frozen=True, slots=True)
class Layout:
    """A directory in the published layout: where its graphs are, each language's pieces, and the ids that they have."""

    assets: Path
    pieces: dict[str, tuple[str, ...]]
    ids: dict[str, tuple[int, ...]]
    mask_length: int

    def graph(self, name: str) -> Path:
        return self.assets / f"{name}.onnx"

    @property
    def graphs(self) -> list[str]:
        return [*SHARED, *(POST_NET.format(language) for language in self.pieces)]


def is_one(source: Path) -> bool:
    """Whether `source` looks like a copy of the repository, or its folder of graphs."""
    return _assets(source) is not None


def _assets(source: Path) -> Path | None:
    return next((folder for folder in (source / "assets", source) if (folder / "language_masks.json").is_file()), None)


def read(source: Path) -> Layout:
    """Raises Permanent where there is no such layout, or its JSON is not what it should be."""
    assets = _assets(source)
    if assets is None:
        raise Permanent(f"{source} has no assets/language_masks.json: it is not a copy of IndicConformer")
    try:
        pieces = {language: tuple(texts) for language, texts in _json(assets / "vocab.json").items()}
        masks = _json(assets / "language_masks.json")
        ids = {language: tuple(i for i, used in enumerate(mask) if used is True) for language, mask in masks.items()}
        sizes = {len(mask) for mask in masks.values()}
        strings = all(isinstance(text, str) for texts in pieces.values() for text in texts)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise Permanent(f"vocab.json or language_masks.json is not what it should be: {error}") from error
    if not strings or not pieces or len(sizes) != 1 or not all(re.fullmatch("[a-z]{2,8}", code) for code in pieces):
        raise Permanent(
            "vocab.json must map language codes to lists of pieces, language_masks.json to lists of a length"
        )
    return Layout(assets, pieces, ids, sizes.pop())


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Permanent(f"{path.name} cannot be read: {error.strerror}") from error
    return dict(content.items())


def vocabulary(layout: Layout) -> Vocabulary:
    """All languages' pieces as one list of tokens; `languages[code][k]` is the id of the language's own token k."""
    tokens = [""] * layout.mask_length
    for language, ids in layout.ids.items():
        for token, piece in zip(ids, layout.pieces[language], strict=True):
            tokens[token] = piece
    tokens[-1] = "<blank>"
    return Vocabulary(tuple(tokens), layout.mask_length - 1, layout.ids, spelling="pieces")


def check(layout: Layout) -> list[Finding]:
    """All that can be seen without running anything."""
    findings = [*_check_languages(layout), *_check_ids(layout)]
    missing = [name for name in layout.graphs if not layout.graph(name).is_file()]
    findings.append(_each("graphs", f"{len(layout.graphs)} files", missing))
    return findings if missing else [*findings, *_check_graphs(layout)]


def _each(name: str, expected: str, wrong: Sequence[str], *, needed: bool = True) -> Finding:
    """`wrong`: those of which it is not so."""
    return Finding(name, expected, f"not so: {', '.join(wrong)}" if wrong else "as expected", not wrong, needed)


def _check_languages(layout: Layout) -> Iterator[Finding]:
    known, found = (" ".join(sorted(codes)) for codes in (SPANS, layout.pieces))
    yield Finding("languages", known, found, known == found, needed=False)
    other = sorted(layout.pieces.keys() ^ layout.ids.keys())
    yield _each("languages of both JSON files", "the same", other)
    wrong = [f"{code} has {len(pieces)}" for code, pieces in layout.pieces.items() if len(pieces) != LOCAL_TOKENS + 1]
    yield _each("pieces of each language", f"{LOCAL_TOKENS} and the blank's place", wrong, needed=False)
    wrong = [code for code, pieces in layout.pieces.items() if not any("▁" in piece for piece in pieces)]
    yield _each("spelling", "SentencePiece's: ▁ begins a word", wrong)


def _check_ids(layout: Layout) -> Iterator[Finding]:
    found, blank = f"{layout.mask_length - 1} and the blank", layout.mask_length - 1
    yield Finding("tokens", f"{TOKENS} and the blank", found, blank == BLANK, needed=False)
    counts = {code: (len(ids), len(layout.pieces.get(code, ()))) for code, ids in layout.ids.items()}
    wrong = [f"{code} has {ids} and {pieces}" for code, (ids, pieces) in counts.items() if ids != pieces]
    yield _each("ids of each mask", "as many as pieces", wrong)
    wrong = [code for code, ids in layout.ids.items() if ids[-1:] != (blank,)]
    yield _each("blank", f"{blank}, the last id of each mask", wrong)
    users = Counter(token for ids in layout.ids.values() for token in ids if token != blank)
    wrong = [str(token) for token, count in users.items() if count > 1]
    yield _each("masks", "no token in two languages", wrong)
    wrong = [code for code, ids in layout.ids.items() if ids[:-1] != _span(code)]
    yield _each("spans", "256 ids in a row, in the known order", wrong, needed=False)


def _span(code: str) -> tuple[int, ...]:
    first = SPANS.index(code) * LOCAL_TOKENS if code in SPANS else -LOCAL_TOKENS
    return tuple(range(first, first + LOCAL_TOKENS))


def _check_graphs(layout: Layout) -> Iterator[Finding]:
    sizes = {"tokens": layout.mask_length, "local tokens": min(map(len, layout.pieces.values()))}
    for name in layout.graphs:
        wanted = _SIGNATURES.get(name, graphs.JOINT_POST_NET)
        try:
            model = onnx.load(layout.graph(name), load_external_data=False)
        except Exception as error:  # noqa: BLE001  (protobuf's, without a public base)
            yield Finding(f"{name}.onnx", "an ONNX graph", type(error).__name__, ok=False)
            continue
        wrong = list(graphs.differences(f"{name}.onnx", _signature(model), wanted, sizes))
        expected = f"{', '.join(wanted.inputs)} -> {', '.join(wanted.outputs)}"
        yield Finding(f"{name}.onnx", expected, "; ".join(wrong) or "as expected", not wrong)
        yield from _check_external(layout, name, model)
        if name == "rnnt_decoder":
            yield _check_embedding(model)


def _check_embedding(model: onnx.ModelProto) -> Finding:
    """Sentences start with an id after all tokens, whose row of the embedding NeMo leaves at zero."""
    rows = TOKENS + 1
    for weight in model.graph.initializer:
        if len(weight.dims) == 2 and weight.dims[0] == rows:  # noqa: PLR2004  (rows of vectors)
            last = onnx.numpy_helper.to_array(weight)[SOS]
            found = "zero" if not last.any() else f"up to {abs(last).max():.3g}"
            return Finding(f"embedding of {SOS}, the start", "zero", found, not last.any(), needed=False)
    return Finding(f"embedding of {SOS}, the start", "zero", f"no table of {rows} rows", ok=False, needed=False)


def _signature(model: onnx.ModelProto) -> Signature:
    inputs, outputs = (
        {
            value.name: (
                _TYPES.get(value.type.tensor_type.elem_type, "something else"),
                tuple(dim.dim_value or dim.dim_param or "?" for dim in value.type.tensor_type.shape.dim),
            )
            for value in values
        }
        for values in (model.graph.input, model.graph.output)
    )
    return Signature(inputs, outputs)


def external(model: onnx.ModelProto) -> dict[str, int]:
    """The files beside a graph that hold its larger tensors, and how many bytes of each it uses."""
    tensors = [*model.graph.initializer]
    tensors += [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    used: dict[str, int] = {}
    for tensor in tensors:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            told = {entry.key: entry.value for entry in tensor.external_data}
            item_bytes = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            end = int(told.get("offset", 0)) + math.prod(tensor.dims) * item_bytes
            used[told["location"]] = max(end, used.get(told["location"], 0))
    return used


def _check_external(layout: Layout, name: str, model: onnx.ModelProto) -> Iterator[Finding]:
    try:
        used = external(model)
    except (KeyError, ValueError):
        yield Finding(f"tensors of {name}.onnx", "each in a file that is named", "not so", ok=False)
        return
    wrong = [file for file, size in used.items() if not _holds(layout.assets, file, size)]
    if used:
        yield _each(f"tensors of {name}.onnx", f"whole in {len(used)} files beside it", wrong)


def _holds(folder: Path, file: str, size: int) -> bool:
    plain = len(PurePosixPath(file).parts) == 1 and file not in ("", ".", "..") and "\\" not in file
    return plain and (folder / file).is_file() and (folder / file).stat().st_size >= size
