"""IndicConformer as published to a bundle: the same graphs, a vocabulary and a manifest. None of its code is run.

read the layout -> check every assumption -> link or copy the graphs -> quantise, if asked -> write, load, run
"""

import logging
import re
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from tqdm import tqdm

from pipelines import conformer_layout as layouts
from pipelines import findings
from pipelines.conformer_layout import POST_NET, SHARED, Layout
from pipelines.conformer_trial import frame_seconds, try_out
from pipelines.errors import Permanent
from pipelines.findings import Finding
from predictor import bundle
from predictor.bundle import INDIC_CONFORMER, Bundle, ConformerGraphs, FrontEnd, Source
from predictor.engine.conformer_graphs import MEL_BINS
from predictor.features import SAMPLE_RATE_HZ

Precision = Literal["fp32", "int8"]
REPOSITORY = "ai4bharat/indic-conformer-600m-multilingual"
MAX_WINDOW_SECONDS = 15.0  # of continuous speech; from 16 s on the model is known to drop words
MAX_SYMBOLS = 10  # of a frame, as in the model's own code
_ASSETS = "assets"
_QUANTISED = ("encoder", "ctc_decoder")
_COMMIT = re.compile("[0-9a-f]{40}")

logger = logging.getLogger("vani")


@dataclass(frozen=True, slots=True)
class Options:
    """What the bundle is called, what its matrices are stored in, and where the weights come from.

    A `revision` that is not given is looked for in what the hub's client leaves beside its downloads.
    """

    name: str = "indic-conformer-600m"
    version: str = "1"
    precision: Precision = "fp32"
    repository: str = REPOSITORY
    revision: str = ""
    licence: str = "MIT"


def convert(source: Path, out: Path, options: Options) -> Bundle:
    """Make a bundle in `out`, which must not exist, of a copy of the published repository.

    Differences that can be served are logged. Raises Permanent with those that cannot; nothing is left half-made.
    """
    if out.exists():
        raise Permanent(f"{out} exists already")
    layout = layouts.read(source)
    _log(findings.refuse(layouts.check(layout)))
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        made = Path(work, "bundle")
        (made / _ASSETS).mkdir(parents=True)
        changed = _QUANTISED if options.precision == "int8" else ()
        _place(layout, [name for name in layout.graphs if name not in changed], made / _ASSETS)
        for name in tqdm(changed, "quantising", unit="graph", disable=None):
            _quantise(layout, name, made / _ASSETS)
        written = _write(made, layout, options)
        _log(findings.refuse(try_out(written)))
        made.rename(out)
    return replace(written, directory=out)


def inspect(source: Path) -> list[Finding]:
    """Every assumption about a copy of the published repository; raises Permanent where it is none.

    The networks are run too, which takes the memory of the model.
    """
    layout = layouts.read(source)
    found = layouts.check(layout)
    if all(finding.ok for finding in found if finding.needed):
        found += try_out(_described(layout, frame_seconds(layout.graph("encoder"))))
    return found


def _log(differences: Iterable[Finding]) -> None:
    for finding in differences:
        logger.warning("%s", finding)


def _place(layout: Layout, names: Iterable[str], folder: Path) -> None:
    """Copy graphs and their tensors to `folder`.

    The hub's cache has symbolic links to files elsewhere, which do not travel; and hard links will not do: onnx reads
    no tensors from a file with several, and who writes to the one writes to the other.
    """
    files: set[str] = set()
    for name in names:
        files |= {f"{name}.onnx", *layouts.external(onnx.load(layout.graph(name), load_external_data=False))}
    sizes = {file: (layout.assets / file).stat().st_size for file in sorted(files)}
    with tqdm(total=sum(sizes.values()), desc="copying", unit="B", unit_scale=True, disable=None) as progress:
        for file, size in sizes.items():
            shutil.copyfile(layout.assets / file, folder / file)
            progress.update(size)


def _quantise(layout: Layout, name: str, folder: Path) -> None:
    """int8 weights per channel for matrix products, activations as they come; convolutions lose their text in int8.

    Seven-bit weights (`reduce_range`) because eight-bit ones overflow on processors without VNNI.
    """
    with tempfile.TemporaryDirectory(dir=folder) as work:
        _place(layout, [name], Path(work))
        quantize_dynamic(
            Path(work, f"{name}.onnx"),
            folder / f"{name}.onnx",
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )


def _write(made: Path, layout: Layout, options: Options) -> Bundle:
    seconds = frame_seconds(made / _ASSETS / "encoder.onnx")
    described = _described(layout, seconds, f"{_ASSETS}/", options.precision)
    return bundle.write(
        made,
        name=options.name,
        version=options.version,
        family=described.family,
        max_window_seconds=described.max_window_seconds,
        sample_rate_hz=described.sample_rate_hz,
        front_end=described.front_end,
        graph=described.graph,
        vocabulary=described.vocabulary,
        source=Source(options.repository, options.revision or _revision(layout.assets.parent), options.licence),
    )


def _described(layout: Layout, seconds: float, folder: str = "", precision: Precision = "fp32") -> Bundle:
    """What the manifest says of a layout whose graphs are in `folder` of the bundle's directory."""
    encoder, ctc_decoder, rnnt_decoder, joint_enc, joint_pred, joint_pre_net = (
        f"{folder}{name}.onnx" for name in SHARED
    )
    graph = ConformerGraphs(
        encoder=encoder,
        ctc_decoder=ctc_decoder,
        rnnt_decoder=rnnt_decoder,
        joint_enc=joint_enc,
        joint_pred=joint_pred,
        joint_pre_net=joint_pre_net,
        joint_post_nets={code: f"{folder}{POST_NET.format(code)}.onnx" for code in layout.pieces},
        frame_seconds=seconds,
        precision=precision,
        sos_id=layouts.SOS,
        max_symbols=MAX_SYMBOLS,
    )
    return Bundle(
        directory=layout.assets,
        digest="",
        name="",
        version="",
        family=INDIC_CONFORMER,
        sample_rate_hz=SAMPLE_RATE_HZ,
        max_window_seconds=MAX_WINDOW_SECONDS,
        front_end=FrontEnd("nemo-log-mel", MEL_BINS),
        graph=graph,
        vocabulary=layouts.vocabulary(layout),
        source=Source("", "", ""),
    )


def _revision(source: Path) -> str:
    """The commit that was downloaded: in the hub's cache it is part of the path, elsewhere in files of its client."""
    told = [part for part in source.resolve().parts if _COMMIT.fullmatch(part)]
    for path in sorted(source.glob(".cache/huggingface/download/**/*.metadata")):
        told += filter(_COMMIT.fullmatch, path.read_text(encoding="utf-8", errors="replace").splitlines()[:1])
    return told[-1] if len(set(told)) == 1 else "unknown"
