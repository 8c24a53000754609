"""The recognition path, whole: audio bytes in, transcript out. The file to read first.

    decode -> split -> for each window: extract -> infer -> search -> render -> stitch

The command line, the server and the evaluation all go through this class, so what is measured is what is served: the
first two call `transcribe`, the server calls the same steps one by one, from its own threads.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from predictor import audio, beam, bundle, features, scripts, search, segments, spelling, transcript, transducer
from predictor.audio import Pcm, Waveform
from predictor.bundle import Bundle, ConformerGraphs
from predictor.engine import BatchRule, Emission, Engine, Transducer, choice
from predictor.engine.choice import EngineKind
from predictor.errors import BadRequest, InvalidBundle
from predictor.language_model import LanguageModel
from predictor.search import Decoding, Hypothesis
from predictor.segments import Window
from predictor.transcript import Transcript, Word

DEFAULT_MAX_AUDIO_SECONDS = 1_800.0
_CANDIDATES = 3
_LEAST_SCRIPT_SHARE = 0.5
LEAST_SECONDS = 0.1  # of a window: in less nobody says anything, and models make words of it


@dataclass(frozen=True, slots=True)
class Recognizer:
    """One model, ready. Every method may be called from several threads at once."""

    bundle: Bundle
    engine: Engine
    max_audio_seconds: float
    transducer: Transducer | None = None
    language_models: Mapping[str, LanguageModel] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        directory: Path,
        max_audio_seconds: float = DEFAULT_MAX_AUDIO_SECONDS,
        rule: BatchRule | None = None,
        engine: EngineKind = "auto",
    ) -> "Recognizer":
        """Verify the bundle, load its graphs and run them once, so that the first caller waits for nothing.

        `rule` is how the engine is to be called, where several calls share it. Raises InvalidBundle.
        """
        model = bundle.read(directory)
        if model.front_end.kind not in features.FRONT_ENDS or model.sample_rate_hz != features.SAMPLE_RATE_HZ:
            asked = (model.front_end.kind, model.sample_rate_hz)
            raise InvalidBundle([f"front end and sample rate are {asked}, which cannot be served"])
        loaded = choice.load(model, rule, engine)
        graph = model.graph
        language_models = {
            language: LanguageModel.load(model.path(file), graph.language_model_weight, graph.word_bonus)
            for language, file in graph.language_models.items()
        }
        recognizer = cls(model, loaded.engine, max_audio_seconds, loaded.transducer, language_models)
        for decoding in recognizer.decodings:
            recognizer.recognize(Window(0.0, np.zeros(features.SAMPLE_RATE_HZ, np.float32)), None, decoding=decoding)
        return recognizer

    @property
    def decodings(self) -> tuple[Decoding, ...]:
        """The ways in which this model's emissions can be searched."""
        return ("ctc", "rnnt") if self.transducer else ("ctc",)

    def transcribe(
        self,
        data: bytes,
        language: str | None = None,
        hotwords: Sequence[str] = (),
        decoding: Decoding = "ctc",
    ) -> Transcript:
        """The words in an audio file of any supported format.

        Without a `language` it is identified from the first window in which something is said. Raises
        BadRequest, UnsupportedAudio, AudioTooLong, InvalidAudio or InferenceFailed.
        """
        self.check(language, decoding)
        waveform = self.decode(data)
        done: list[Word] = []
        held: list[Word] = []  # of the window before: the next one may have heard its end better
        for window in self.split(waveform):
            words, language = self.recognize(window, language, hotwords, decoding)
            if window.overlap_seconds:
                overlap_end = window.start_seconds + window.overlap_seconds
                held, words = transcript.stitch(held, words, window.start_seconds, overlap_end)
            done += held
            held = words
        return transcript.join([*done, *held], language, waveform.duration_seconds)

    def check(self, language: str | None, decoding: Decoding = "ctc") -> None:
        """Raises BadRequest for what this model does not have."""
        if language is not None and language not in self.bundle.languages:
            known = ", ".join(self.bundle.languages)
            raise BadRequest(f"language {language[:20]!r} is not one of this model's: {known}")
        if decoding not in self.decodings:
            raise BadRequest("this model has no RNN-T decoder: ask for the decoding 'ctc'")

    def decode(self, data: bytes | bytearray | memoryview | Pcm) -> Waveform:
        if isinstance(data, Pcm):
            return audio.from_pcm(data, self.max_audio_seconds)
        return audio.decode(data, self.max_audio_seconds)

    def split(self, waveform: Waveform) -> list[Window]:
        return segments.split(waveform.samples, self.bundle.max_window_seconds)

    def recognize(
        self,
        window: Window,
        language: str | None,
        hotwords: Sequence[str] = (),
        decoding: Decoding = "ctc",
    ) -> tuple[list[Word], str | None]:
        """The words of one window and its language: the given one, or the one identified, or None for silence."""
        (emission,) = self.engine.infer(features.pad([self.extract(window)]))
        return self.search(emission, window, language, hotwords, decoding)

    def extract(self, window: Window) -> NDArray[np.float32]:
        """Features [mel, T] of a window."""
        return features.extract(window.samples, self.bundle.front_end)

    def search(
        self,
        emission: Emission,
        window: Window,
        language: str | None,
        hotwords: Sequence[str] = (),
        decoding: Decoding = "ctc",
    ) -> tuple[list[Word], str | None]:
        """What `recognize` says, from the emission of the window."""
        vocabulary, graph = self.bundle.vocabulary, self.bundle.graph
        language = language or self.identify(emission)
        if language is None or len(window.samples) < LEAST_SECONDS * features.SAMPLE_RATE_HZ:
            return [], language
        hypothesis = self._hypothesis(emission, language, hotwords, decoding)
        spoken = search.without_prefix(hypothesis, graph.junk_prefix)
        return transcript.render(spoken, vocabulary, graph.frame_seconds, window.start_seconds), language

    def identify(self, emission: Emission) -> str | None:
        """The language: of the likeliest few, the first whose text is in a script of its own; None for silence."""
        vocabulary = self.bundle.vocabulary
        likeliest = search.identify(emission, vocabulary)
        for language in likeliest[:_CANDIDATES] if len(likeliest) > 1 else ():
            path = search.best_path(emission, vocabulary.languages[language], vocabulary.blank_id)
            spelt = spelling.characters([vocabulary.tokens[token] for token in path.tokens], vocabulary.spelling)
            share = scripts.share(Counter(character for character, _, _ in spelt), language)
            if share is None or share >= _LEAST_SCRIPT_SHARE:
                return language
        return likeliest[0] if likeliest else None

    def _hypothesis(self, emission: Emission, language: str, hotwords: Sequence[str], decoding: Decoding) -> Hypothesis:
        vocabulary, graph = self.bundle.vocabulary, self.bundle.graph
        ids = vocabulary.languages[language]
        if decoding == "rnnt" and self.transducer and emission.encoded is not None:
            max_symbols = graph.max_symbols if isinstance(graph, ConformerGraphs) else 1
            return transducer.search(emission.encoded, self.transducer, language, ids, max_symbols)
        language_model = self.language_models.get(language)
        if hotwords or language_model:
            gap_frames = graph.repeat_gap_frames
            return beam.search(emission, vocabulary, language, hotwords, gap_frames, model=language_model)
        return search.best_path(emission, ids, vocabulary.blank_id, graph.repeat_gap_frames)
