"""Synthetic speakers: what they say, in which format, and that they say it the same way twice."""

import shutil
from random import Random

import numpy as np
import pytest

from demo.speakers import (
    PITCHES,
    SEEN_VARIANTS,
    SPEEDS_WPM,
    UNSEEN_VARIANTS,
    VOICES,
    Speaker,
    draw_speaker,
    speak,
    to_opus,
)
from predictor.audio import decode
from predictor.features import SAMPLE_RATE_HZ

TEXTS = {"vi": "hôm nay trời đẹp quá", "hi": "आज मौसम बहुत अच्छा है"}

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def test_an_id_names_voice_variant_speed_and_pitch():
    assert Speaker("vi-vn-x-south", "f2", 150, 40).id == "vi-vn-x-south+f2-s150-p40"
    assert Speaker("hi", "", 125, 75).id == "hi+plain-s125-p75"


@pytest.mark.parametrize("language", VOICES)
def test_a_drawn_speaker_is_one_of_the_language_and_of_the_variants_given(language):
    rng = Random(1)
    drawn = [draw_speaker(language, UNSEEN_VARIANTS, rng) for _ in range(300)]
    assert {speaker.voice for speaker in drawn} == {*VOICES[language]}
    assert {speaker.variant for speaker in drawn} == {*UNSEEN_VARIANTS}
    assert all(SPEEDS_WPM[0] <= speaker.speed_wpm <= SPEEDS_WPM[1] for speaker in drawn)
    assert all(PITCHES[0] <= speaker.pitch <= PITCHES[1] for speaker in drawn)


@needs_espeak
@pytest.mark.parametrize("voice", [voice for voices in VOICES.values() for voice in voices])
def test_speech_is_16_bit_at_16_khz_and_as_long_as_it_takes_to_say(voice):
    text = TEXTS[voice[:2]]
    slow, fast = (speak(text, Speaker(voice, "", speed, 50)) for speed in SPEEDS_WPM)
    for samples in (slow, fast):
        assert samples.dtype == np.int16
        assert samples.ndim == 1
        # A word takes between an eighth of a second and a second.
        assert len(text.split()) / 8 < len(samples) / SAMPLE_RATE_HZ < len(text.split())
    assert len(slow) > 1.2 * len(fast)


@needs_espeak
@pytest.mark.parametrize("voice", [voice for voices in VOICES.values() for voice in voices])
def test_speech_is_loud_and_hardly_ever_clipped(voice):
    levels = np.abs(speak(TEXTS[voice[:2]], Speaker(voice, "", 160, 50)).astype(np.int32))
    assert levels.max() > 5_000
    assert (levels >= 32_767).mean() < 0.001


@needs_espeak
@pytest.mark.parametrize("language", TEXTS)
def test_the_same_speaker_says_the_same_thing_the_same_way(language):
    speaker = Speaker(VOICES[language][-1], "f2", 160, 50)
    assert np.array_equal(speak(TEXTS[language], speaker), speak(TEXTS[language], speaker))


@needs_espeak
@pytest.mark.parametrize("language", TEXTS)
def test_no_two_variants_sound_the_same(language):
    # espeak-ng says nothing of a variant that it does not know, and speaks plainly.
    variants = SEEN_VARIANTS + UNSEEN_VARIANTS
    spoken = {speak(TEXTS[language], Speaker(VOICES[language][0], v, 160, 50)).tobytes() for v in variants}
    assert len(spoken) == len(variants)


@needs_espeak
def test_a_text_that_looks_like_an_option_is_spoken():
    assert len(speak("--help", Speaker("vi", "", 160, 50))) > SAMPLE_RATE_HZ / 10


@needs_espeak
def test_opus_keeps_the_length_and_the_sound():
    samples = speak(TEXTS["vi"], Speaker("vi", "", 160, 50))
    decoded = decode(to_opus(samples), 30).samples
    assert len(decoded) == len(samples)
    assert np.corrcoef(decoded, samples.astype(np.float32))[0, 1] > 0.95
