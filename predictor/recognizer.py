"""The recognition path, whole: audio bytes in, transcript out. The file to read first.

    decode -> split -> for each window: extract -> infer -> search -> render -> stitch

The command line, the server and the evaluation all go through this class, so what is measured is what is served: the
first two call `transcribe`, the server calls the same steps one by one, from its own threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from predictor import audio, beam, bundle, features, search, segments, transcript
from predictor.audio import Pcm, Waveform
from predictor.bundle import Bundle
from predictor.engine import BatchRule, Engine
from predictor.engine.onnx import OnnxEngine
from predictor.errors import BadRequest, InvalidBundle
from predictor.search import LogProbs
from predictor.segments import Window
from predictor.transcript import Transcript, Word

FAMILY = "ctc"
FRONT_END = "whisper-log-mel"
DEFAULT_MAX_AUDIO_SECONDS = 1_800.0


@dataclass(frozen=True, slots=True)
class Recognizer:
    """One model, ready. Every method may be called from several threads at once."""

    bundle: Bundle
    engine: Engine
    max_audio_seconds: float

    @classmethod
    def load(
        cls, directory: Path, max_audio_seconds: float = DEFAULT_MAX_AUDIO_SECONDS, rule: BatchRule | None = None
    ) -> "Recognizer":
        """Verify the bundle, load its graph and run it once, so that the first caller waits for nothing.

        `rule` is how the engine is to be called, where several calls share it. Raises InvalidBundle.
        """
        model = bundle.read(directory)
        asked = (model.family, model.front_end.kind, model.sample_rate_hz)
        known = (FAMILY, FRONT_END, features.SAMPLE_RATE_HZ)
        if asked != known:
            raise InvalidBundle([f"family, front end and sample rate are {asked}, and {known} is what can be served"])
        recognizer = cls(model, OnnxEngine(model, rule), max_audio_seconds)
        recognizer.recognize(Window(0.0, np.zeros(features.SAMPLE_RATE_HZ, np.float32)), None)
        return recognizer

    def transcribe(self, data: bytes, language: str | None = None, hotwords: Sequence[str] = ()) -> Transcript:
        """The words in an audio file of any supported format.

        Without a `language` it is identified from the first window in which something is said. Raises
        BadRequest, UnsupportedAudio, AudioTooLong, InvalidAudio or InferenceFailed.
        """
        self.check_language(language)
        waveform = self.decode(data)
        done: list[Word] = []
        held: list[Word] = []  # of the window before: the next one may have heard its end better
        for window in self.split(waveform):
            words, language = self.recognize(window, language, hotwords)
            if window.overlap_seconds:
                overlap_end = window.start_seconds + window.overlap_seconds
                held, words = transcript.stitch(held, words, window.start_seconds, overlap_end)
            done += held
            held = words
        return transcript.join([*done, *held], language, waveform.duration_seconds)

    def check_language(self, language: str | None) -> None:
        if language is not None and language not in self.bundle.languages:
            known = ", ".join(self.bundle.languages)
            raise BadRequest(f"language {language[:20]!r} is not one of this model's: {known}")

    def decode(self, data: bytes | bytearray | memoryview | Pcm) -> Waveform:
        if isinstance(data, Pcm):
            return audio.from_pcm(data, self.max_audio_seconds)
        return audio.decode(data, self.max_audio_seconds)

    def split(self, waveform: Waveform) -> list[Window]:
        return segments.split(waveform.samples, self.bundle.max_window_seconds)

    def recognize(
        self, window: Window, language: str | None, hotwords: Sequence[str] = ()
    ) -> tuple[list[Word], str | None]:
        """The words of one window and its language: the given one, or the one identified, or None for silence."""
        emissions = self.engine.infer(features.pad([self.extract(window)]))
        return self.search(emissions.log_probs[0, : emissions.lengths[0]], window, language, hotwords)

    def extract(self, window: Window) -> NDArray[np.float32]:
        """Features [mel, T] of a window."""
        return features.log_mel(window.samples, self.bundle.front_end.mel_bins)

    def search(
        self, log_probs: LogProbs, window: Window, language: str | None, hotwords: Sequence[str] = ()
    ) -> tuple[list[Word], str | None]:
        """What `recognize` says, from the log-probabilities [T', tokens] of the window."""
        vocabulary, graph = self.bundle.vocabulary, self.bundle.graph
        language = language or search.identify(log_probs, vocabulary)
        if language is None:
            return [], None
        if hotwords:
            hypothesis = beam.search(log_probs, vocabulary, language, hotwords, graph.repeat_gap_frames)
        else:
            allowed = vocabulary.languages[language]
            hypothesis = search.best_path(log_probs, allowed, vocabulary.blank_id, graph.repeat_gap_frames)
        words = transcript.render(hypothesis, vocabulary, graph.frame_seconds, window.start_seconds)
        return words, language
