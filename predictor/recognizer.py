"""The recognition path, whole: audio bytes in, transcript out. The file to read first.

    decode -> split -> for each window: extract -> infer -> search -> render -> join

The command line, the server and the evaluation all go through this class, so what is measured is what is served.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from predictor import audio, bundle, features, search, segments, transcript
from predictor.audio import Waveform
from predictor.bundle import Bundle
from predictor.engine.onnx import OnnxEngine
from predictor.errors import BadRequest, InvalidBundle
from predictor.segments import Window
from predictor.transcript import Transcript, Word

FAMILY = "ctc"
FRONT_END = "whisper-log-mel"
DEFAULT_MAX_AUDIO_SECONDS = 1_800.0


@dataclass(frozen=True, slots=True)
class Recognizer:
    """One model, ready. Every method may be called from several threads at once."""

    bundle: Bundle
    engine: OnnxEngine
    max_audio_seconds: float

    @classmethod
    def load(cls, directory: Path, max_audio_seconds: float = DEFAULT_MAX_AUDIO_SECONDS) -> "Recognizer":
        """Verify the bundle, load its graph and run it once, so that the first caller waits for nothing.

        Raises InvalidBundle.
        """
        model = bundle.read(directory)
        asked = (model.family, model.front_end.kind, model.sample_rate_hz)
        known = (FAMILY, FRONT_END, features.SAMPLE_RATE_HZ)
        if asked != known:
            raise InvalidBundle([f"family, front end and sample rate are {asked}, and {known} is what can be served"])
        recognizer = cls(model, OnnxEngine(model), max_audio_seconds)
        recognizer.recognize(Window(0.0, np.zeros(features.SAMPLE_RATE_HZ, np.float32)), None)
        return recognizer

    def transcribe(self, data: bytes, language: str | None = None) -> Transcript:
        """The words in an audio file of any supported format.

        Without a `language` it is identified from the first window in which something is said. Raises
        BadRequest, UnsupportedAudio, AudioTooLong, InvalidAudio or InferenceFailed.
        """
        self.check_language(language)
        waveform = self.decode(data)
        words: list[Word] = []
        for window in self.split(waveform):
            found, language = self.recognize(window, language)
            words += found
        return transcript.join(words, language, waveform.duration_seconds)

    def check_language(self, language: str | None) -> None:
        if language is not None and language not in self.bundle.languages:
            known = ", ".join(self.bundle.languages)
            raise BadRequest(f"language {language[:20]!r} is not one of this model's: {known}")

    def decode(self, data: bytes) -> Waveform:
        return audio.decode(data, self.max_audio_seconds)

    def split(self, waveform: Waveform) -> list[Window]:
        return segments.split(waveform.samples, self.bundle.max_window_seconds)

    def recognize(self, window: Window, language: str | None) -> tuple[list[Word], str | None]:
        """The words of one window and its language: the given one, or the one identified, or None for silence."""
        vocabulary, graph = self.bundle.vocabulary, self.bundle.graph
        batch = features.pad([features.log_mel(window.samples, self.bundle.front_end.mel_bins)])
        emissions = self.engine.infer(batch)
        log_probs = emissions.log_probs[0, : emissions.lengths[0]]
        language = language or search.identify(log_probs, vocabulary)
        if language is None:
            return [], None
        allowed = vocabulary.languages[language]
        hypothesis = search.best_path(log_probs, allowed, vocabulary.blank_id, graph.repeat_gap_frames)
        words = transcript.render(hypothesis, vocabulary, graph.frame_seconds, window.start_seconds)
        return words, language
