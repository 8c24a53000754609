"""A PhoWhisper encoder with a CTC head to a bundle: `convert`. Which checkpoint it came in does not matter.

checkpoint (tensors) -> layout (named as one, checked) + tokens (tokenizer, rows that a text needs)
                     -> graph + head (ONNX) -> quantised -> trial (against PyTorch)
"""

import hashlib
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from onnxruntime.quantization import QuantType, quantize_dynamic
from safetensors.numpy import save_file

from pipelines import checkpoint, findings
from pipelines.errors import Permanent
from pipelines.findings import Finding
from pipelines.phowhisper import graph, tokens
from pipelines.phowhisper import layout as layouts
from pipelines.phowhisper.layout import CLASSIFIER, Layout, Weights
from pipelines.phowhisper.tokens import Tokenizer
from predictor import bundle
from predictor.bundle import CTC, Bundle, FrontEnd, Graph, Source, Vocabulary
from predictor.features import SAMPLE_RATE_HZ

Precision = Literal["fp32", "int8"]
Length = Literal["true", "padded"]

REPOSITORY = "tuandunghcmut/PhoWhisper-tiny-CTC"
MAX_WINDOW_SECONDS = 30.0  # as many positions as there are
GRAPH, WEIGHTS, IR = "model.onnx", "weights.safetensors", "model.xml"
_FLOAT = 1  # TensorProto's

logger = logging.getLogger("vani")


@dataclass(frozen=True, slots=True)
class Options:
    """What the bundle is called, what is in it, and where the weights come from.

    `tokenizer` is a directory (None: the checkpoint's own); `rows` is a text of one sentence a line, whose tokens alone
    are kept (None: all); `length` says whether windows are heard as long as they are or, as in training, with silence
    up to 30 s. `weights` and `openvino` add what those engines run. Without a `revision` the checkpoint's digest is it.
    """

    name: str = "phowhisper-ctc"
    version: str = "1"
    precision: Precision = "fp32"
    length: Length = "true"
    tokenizer: Path | None = None
    rows: Path | None = None
    weights: bool = False
    openvino: bool = False
    repository: str = REPOSITORY
    revision: str = ""
    licence: str = "unknown"


def convert(source: Path, out: Path, options: Options) -> Bundle:
    """Make a bundle in `out`, which must not exist, of a checkpoint file or a directory with one.

    The graph is compared with PyTorch's, and what was found is logged. Raises Permanent with every assumption that does
    not hold; nothing is left half-made.
    """
    if out.exists():
        raise Permanent(f"{out} exists already")
    layout, tokenizer = _read(source, options.tokenizer)
    _report(_check(layout, tokenizer))
    everything = range(layout.rows)
    kept = tokens.used(tokenizer, options.rows) if options.rows else tuple(everything)
    if options.rows:
        logger.info("%d of %d rows of the head are kept", len(kept), layout.rows)
    weights = layouts.load(layout)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        made = Path(work, "bundle")
        made.mkdir()
        _place(made, _rows(weights, kept), options)
        written = _write(made, layout, tokenizer, kept, source, options)
        from pipelines.phowhisper import trial

        _report(trial.compare(written, weights, kept))
        made.rename(out)
    return replace(written, directory=out)


def inspect(source: Path, tokenizer: Path | None = None) -> list[Finding]:
    """Every assumption about a checkpoint and its tokenizer; raises Permanent where it is no PhoWhisper-CTC at all."""
    return _check(*_read(source, tokenizer))


def _read(source: Path, directory: Path | None) -> tuple[Layout, Tokenizer]:
    layout = layouts.read(checkpoint.read(source))
    return layout, tokens.read(directory or (source if source.is_dir() else source.parent))


def _check(layout: Layout, tokenizer: Tokenizer) -> list[Finding]:
    left = ", ".join(sorted({name.split(".")[0] for name in layout.left})) or "none"
    return [
        *layouts.check(layout),
        *tokens.check(tokenizer, layout.rows),
        Finding("tensors of something else", "none", f"{len(layout.left)} ({left})", not layout.left, needed=False),
    ]


def _report(found: Sequence[Finding]) -> None:
    """Log what is as expected and what differs; raises Permanent where something needed differs."""
    for finding in findings.refuse(found):
        logger.warning("%s", finding)
    for finding in found:
        if finding.ok:
            logger.info("%s: %s", finding.name, finding.found)


def _rows(weights: Weights, kept: Sequence[int]) -> Weights:
    """The weights with these rows of the classifier alone."""
    own = {f"{CLASSIFIER}.{part}": weights[f"{CLASSIFIER}.{part}"][np.asarray(kept)] for part in ("weight", "bias")}
    return weights | own


def _place(made: Path, weights: Weights, options: Options) -> None:
    """Every file but the manifest and the vocabulary."""
    if options.precision == "int8":
        with tempfile.TemporaryDirectory(dir=made.parent) as work:
            graph.write(weights, Path(work, GRAPH))
            _quantise(Path(work, GRAPH), made / GRAPH)
    else:
        graph.write(weights, made / GRAPH)
    if options.weights:
        save_file(weights, made / WEIGHTS)
    if options.openvino:
        from pipelines import openvino_ir

        openvino_ir.write(weights, made / IR, options.precision)


def _quantise(source: Path, path: Path) -> None:
    """int8 weights per channel for matrix products, activations as they come; convolutions stay fp32.

    Seven-bit weights (`reduce_range`) because eight-bit ones overflow on processors without VNNI.
    """
    logging.disable(logging.WARNING)  # what it says of every node is about static quantisation
    try:
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": _FLOAT},  # of ONNX Runtime's own operators, which it cannot infer
        )
    finally:
        logging.disable(logging.NOTSET)


def _write(  # noqa: PLR0913, PLR0917  (what a manifest is made of)
    made: Path, layout: Layout, tokenizer: Tokenizer, kept: Sequence[int], source: Path, options: Options
) -> Bundle:
    number = {token: own for own, token in enumerate(kept)}
    vocabulary = Vocabulary(
        tokens=tuple(tokenizer.tokens[token] for token in kept),
        blank_id=len(kept) - 1,
        languages={"vi": tuple(range(len(kept)))},
        spelling="bytes",
        original_ids=tuple(kept) if len(kept) < layout.rows else (),
    )
    return bundle.write(
        made,
        name=options.name,
        version=options.version,
        family=CTC,
        max_window_seconds=MAX_WINDOW_SECONDS,
        sample_rate_hz=SAMPLE_RATE_HZ,
        front_end=FrontEnd(
            "whisper-log-mel", layout.mel_bins, MAX_WINDOW_SECONDS if options.length == "padded" else 0.0
        ),
        graph=Graph(
            file=GRAPH,
            features=graph.FEATURES,
            lengths=graph.LENGTHS,
            log_probs=graph.LOG_PROBS,
            frame_seconds=graph.FRAME_SECONDS,
            precision=options.precision,
            tokens=graph.TOKENS,
            junk_prefix=tuple(number[token] for token in tokens.JUNK),
            weights=WEIGHTS if options.weights else "",
            ir=IR if options.openvino else "",
        ),
        vocabulary=vocabulary,
        source=Source(options.repository, options.revision or _digest(checkpoint.file_of(source)), options.licence),
    )


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()}"
