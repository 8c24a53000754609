"""Who says it: espeak-ng voices, variants, speeds and pitches, and which of them training never hears."""

import io
import subprocess
from dataclasses import dataclass
from random import Random

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from predictor.features import SAMPLE_RATE_HZ

VOICES = {"vi": ("vi", "vi-vn-x-central", "vi-vn-x-south"), "hi": ("hi",)}
ACCENT_WEIGHTS = {"vi": (0.5, 0.2, 0.3), "hi": (1.0,)}
SEEN_VARIANTS = ("", "m1", "m2", "m3", "m5", "m6", "m7", "f1", "f2", "f3", "f5", "Alex", "Andy", "Annie", "Michael")
# Those of espeak-ng's named variants that neither crash it on these languages nor clip.
MORE_VARIANTS = (
    *("Alicia", "Denis", "Diogo", "Henrique", "Hugo", "Lee", "Mario", "Mike", "adam", "aunty", "belinda", "benjamin"),
    *("boris", "david", "edward", "grandma", "grandpa", "linda", "max", "michel", "miguel", "norbert", "pablo"),
    *("quincy", "rob", "robert", "sandro", "shelby", "steph", "travis", "victor", "zac"),
)
UNSEEN_VARIANTS = ("m4", "m8", "f4")  # held out of training: the test set's new speakers
SPEEDS_WPM = (125, 200)
PITCHES = (25, 75)
AMPLITUDE = 70  # of 200; the Vietnamese voices clip near the default of 100


@dataclass(frozen=True, slots=True)
class Speaker:
    """One setting of the synthesiser; `id` names it in a manifest."""

    voice: str
    variant: str
    speed_wpm: int
    pitch: int

    @property
    def id(self) -> str:
        return f"{self.voice}+{self.variant or 'plain'}-s{self.speed_wpm}-p{self.pitch}"


def draw_speaker(language: str, variants: tuple[str, ...], rng: Random) -> Speaker:
    """A speaker of `language` with one of `variants`, at an even choice of speed and pitch."""
    voice = rng.choices(VOICES[language], ACCENT_WEIGHTS[language])[0]
    return Speaker(voice, rng.choice(variants), rng.randint(*SPEEDS_WPM), rng.randint(*PITCHES))


def speak(text: str, speaker: Speaker) -> NDArray[np.int16]:
    """Synthesise `text`: int16 mono samples at 16 kHz. Needs the `espeak-ng` program."""
    voice = f"{speaker.voice}+{speaker.variant}" if speaker.variant else speaker.voice
    command = ["espeak-ng", "-v", voice, "-s", str(speaker.speed_wpm), "-p", str(speaker.pitch), "-a", str(AMPLITUDE)]
    wav = subprocess.run([*command, "--stdout", "--", text], check=True, capture_output=True).stdout
    # Written to a pipe, the header's length is a placeholder; the samples are what follows 44 bytes.
    rate_hz = int.from_bytes(wav[24:28], "little")
    samples = np.frombuffer(wav, dtype="<i2", offset=44)
    return np.asarray(soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ), dtype=np.int16)


def to_opus(samples: NDArray[np.int16]) -> bytes:
    """Samples as an Ogg Opus file, the test set's format: a tenth of FLAC's size."""
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE_HZ, format="OGG", subtype="OPUS")
    return file.getvalue()
