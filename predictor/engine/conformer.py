"""IndicConformer served as it is published: 28 ONNX graphs, run by ONNX Runtime, and none of the repository's code.

    features -> encoder -> ctc_decoder: log-probabilities of the tokens of all languages
                        -> joint_enc, rnnt_decoder, joint_pred, joint_pre_net, joint_post_net_<language>: the transducer

The language is no input of the encoder: it picks 257 columns of the log-probabilities, or one of the joint's last nets.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from predictor.bundle import Bundle, ConformerGraphs
from predictor.engine import BatchRule, Emission, State
from predictor.engine import conformer_graphs as graphs
from predictor.engine.conformer_graphs import MEL_BINS, Device, Signature
from predictor.errors import InferenceFailed, InvalidBundle
from predictor.features import FRAME_SECONDS, Batch

LSTM_LAYERS = 2
FRAME_STEPS = (4, 8)  # feature frames to an encoder frame: what is published has 8, an older one is said to have 4
_WARM_UP_FRAMES = 201  # 2 s

Arrays = Mapping[str, NDArray[Any]]


def load(
    bundle: Bundle, rule: BatchRule | None = None, device: Device = "cpu"
) -> tuple["ConformerEngine", "ConformerTransducer"]:
    """Open and check all graphs, and that those of the transducer take what the encoder gives; raises InvalidBundle."""
    engine, transducer = ConformerEngine(bundle, rule, device), ConformerTransducer(bundle)
    if engine.width != transducer.width:
        raise InvalidBundle([f"the encoder's width is {engine.width}, and joint_enc takes {transducer.width}"])
    return engine, transducer


class ConformerEngine:
    """Encoder and CTC decoder. `infer` may be called from several threads."""

    def __init__(self, bundle: Bundle, rule: BatchRule | None = None, device: Device = "cpu") -> None:
        """Load the graphs and run them once; raises InvalidBundle with each difference from what is expected.

        Where `rule` has more than one row to a call, as for a GPU, they share it; else each is run at its own length.
        """
        self.rule = rule or BatchRule()
        files = _files(bundle)
        self._encoder = graphs.open_graph(bundle.path(files.encoder), device)
        self._ctc_decoder = graphs.open_graph(bundle.path(files.ctc_decoder), device)
        sizes = {"tokens": len(bundle.vocabulary.tokens)}
        _check(
            (files.encoder, self._encoder, graphs.ENCODER),
            (files.ctc_decoder, self._ctc_decoder, graphs.CTC_DECODER),
            sizes=sizes,
        )
        self.normalised = True
        self.width = self._warm_up(bundle)

    def _warm_up(self, bundle: Bundle) -> int:
        """Look at what comes out: frame rate, width, tokens, and whether log-probabilities are what they are called."""
        noise = np.random.default_rng(0).standard_normal((1, MEL_BINS, _WARM_UP_FRAMES), dtype=np.float32)
        try:
            (emission,) = self.infer(Batch(noise, np.array([_WARM_UP_FRAMES])))
        except InferenceFailed as error:
            raise InvalidBundle(["encoder and ctc_decoder fail on two seconds of noise"]) from error
        log_probs, encoded = emission.log_probs, emission.encoded
        assert encoded is not None
        problems = []
        step = round(_WARM_UP_FRAMES / max(len(encoded), 1))
        if step not in FRAME_STEPS or abs(step * FRAME_SECONDS - bundle.graph.frame_seconds) > FRAME_SECONDS / 2:
            problems.append(
                f"an encoder frame is {step * FRAME_SECONDS:g} s, the manifest says {bundle.graph.frame_seconds:g} s"
            )
        if log_probs.shape != (len(encoded), len(bundle.vocabulary.tokens)):
            problems.append(
                f"ctc_decoder gives {list(log_probs.shape)} for {len(encoded)} frames and "
                f"{len(bundle.vocabulary.tokens)} tokens"
            )
        if problems:
            raise InvalidBundle(problems)
        self.normalised = bool(np.abs(np.exp(log_probs).sum(axis=1) - 1).max() < 1e-3)  # noqa: PLR2004  (rounding)
        return int(encoded.shape[1])

    def infer(self, batch: Batch) -> list[Emission]:
        """log_probs [T', tokens] and encoded [T', D] of each row; raises InferenceFailed."""
        if self.rule.max_rows > 1:
            return self._run(batch.frames, batch.lengths)
        return [
            emission
            for frames, length in zip(batch.frames, batch.lengths, strict=True)
            for emission in self._run(frames[None, :, :length], np.array([length]))
        ]

    def _run(self, frames: NDArray[np.float32], lengths: NDArray[np.int64]) -> list[Emission]:
        inputs: Arrays = {"audio_signal": np.ascontiguousarray(frames), "length": lengths}
        encoded, counts = _run(self._encoder, ["outputs", "encoded_lengths"], inputs)
        (log_probs,) = _run(self._ctc_decoder, ["logprobs"], {"encoder_output": encoded})
        if not self.normalised:
            log_probs = log_probs - log_probs.max(axis=2, keepdims=True)
            log_probs -= np.log(np.exp(log_probs).sum(axis=2, keepdims=True))
        return [
            Emission(scores[:count], encoded=np.ascontiguousarray(row[:, :count].T))
            for scores, row, count in zip(log_probs, encoded, counts.tolist(), strict=True)
        ]


class ConformerTransducer:
    """Prediction and joint networks: a `Transducer`. Always on the CPU: calls are many and small."""

    def __init__(self, bundle: Bundle) -> None:
        """Load the graphs and run them once; raises InvalidBundle with each difference from what is expected."""
        files = _files(bundle)
        languages = bundle.vocabulary.languages
        if files.joint_post_nets.keys() != languages.keys():
            raise InvalidBundle(["the languages of the vocabulary are not those of the joint networks"])
        counts = {len(ids) for ids in languages.values()}
        if len(counts) > 1 or any(ids[-1] != bundle.vocabulary.blank_id for ids in languages.values()):
            raise InvalidBundle(["languages must have one number of tokens, and the blank as the last of them"])
        self.blank_id = counts.pop() - 1
        names = ("rnnt_decoder", "joint_enc", "joint_pred", "joint_pre_net")
        self._shared = {name: graphs.open_graph(bundle.path(getattr(files, name))) for name in names}
        self._posts = {code: graphs.open_graph(bundle.path(file)) for code, file in files.joint_post_nets.items()}
        sizes = {"local tokens": self.blank_id + 1}
        wanted = (graphs.RNNT_DECODER, graphs.JOINT_ENC, graphs.JOINT_PRED, graphs.JOINT_PRE_NET)
        _check(
            *((getattr(files, name), self._shared[name], each) for name, each in zip(names, wanted, strict=True)),
            *((files.joint_post_nets[code], post, graphs.JOINT_POST_NET) for code, post in self._posts.items()),
            sizes=sizes,
        )
        if not {"D", "H"} <= sizes.keys():
            raise InvalidBundle([f"{files.joint_enc} and {files.rnnt_decoder} do not say how wide their inputs are"])
        self.width = sizes["D"]
        joints = (self._shared["joint_pre_net"], *self._posts.values())
        self._one_by_one = any(session.get_inputs()[0].shape[0] == 1 for session in joints)  # as exported without axes
        self._state: State = (np.zeros((LSTM_LAYERS, 1, sizes["H"]), np.float32),) * 2
        self._sos_id = files.sos_id
        self._warm_up()

    def _warm_up(self) -> None:
        try:
            self._start = self._predict(self._sos_id, self._state)
            frames = self.start(np.zeros((2, self.width), np.float32))
            shapes = {code: self.join(frames, self._start[0], code).shape for code in self._posts}
        except (InferenceFailed, ValueError) as error:  # ValueError: widths that do not match
            raise InvalidBundle(["the transducer's networks do not fit one behind another"]) from error
        wanted = (len(frames), self.blank_id + 1)
        if set(shapes.values()) != {wanted}:
            raise InvalidBundle([f"joint nets give {shapes} for two frames, and {wanted} is expected"])

    def start(self, encoded: NDArray[np.float32]) -> NDArray[np.float32]:
        (frames,) = _run(self._shared["joint_enc"], ["output"], {"input": encoded[None]})
        return np.asarray(frames[0], dtype=np.float32)

    def predict(self, token: int | None, state: State | None) -> tuple[NDArray[np.float32], State]:
        if token is None or state is None:
            return self._start
        return self._predict(token, state)

    def _predict(self, token: int, state: State) -> tuple[NDArray[np.float32], State]:
        hidden, cell = state
        inputs = {
            "targets": np.array([[token]], np.int32),
            "target_length": np.array([1], np.int32),
            "states.1": hidden,
            "onnx::Slice_3": cell,
        }
        outputs, hidden, cell = _run(self._shared["rnnt_decoder"], ["outputs", "states", "162"], inputs)
        (prediction,) = _run(self._shared["joint_pred"], ["output"], {"input": outputs.reshape(1, 1, -1)})
        return prediction[0, 0], (hidden, cell)

    def join(self, frames: NDArray[np.float32], prediction: NDArray[np.float32], language: str) -> NDArray[np.float32]:
        sums = (frames + prediction)[:, None]
        if self._one_by_one:
            return np.concatenate([self._join(row[None], language) for row in sums])
        return self._join(sums, language)

    def _join(self, sums: NDArray[np.float32], language: str) -> NDArray[np.float32]:
        (joined,) = _run(self._shared["joint_pre_net"], ["output"], {"input": sums})
        (logits,) = _run(self._posts[language], ["output"], {"input": joined})
        return np.asarray(logits[:, 0], dtype=np.float32)


def _files(bundle: Bundle) -> ConformerGraphs:
    if not isinstance(bundle.graph, ConformerGraphs):
        raise InvalidBundle([f"the family {bundle.family!r} has no such graphs"])
    return bundle.graph


def _check(*opened: tuple[str, Any, Signature], sizes: dict[str, int]) -> None:
    problems = [
        problem
        for file, session, wanted in opened
        for problem in graphs.differences(file, graphs.signature(session), wanted, sizes)
    ]
    if problems:
        raise InvalidBundle(problems)


def _run(session: Any, outputs: list[str], inputs: Arrays) -> list[NDArray[Any]]:  # noqa: ANN401  (no types)
    try:
        found: list[NDArray[Any]] = session.run(outputs, dict(inputs))
    except Exception as error:  # as in conformer_graphs
        raise InferenceFailed from error
    return found
