"""The test set in the repository: whole, honest about its speakers, unknown to training, and made as it says."""

import hashlib
import re
import shutil
from collections import Counter

import numpy as np
import pytest

from demo import corpus, testset
from demo.sentences import LANGUAGES
from demo.speakers import SEEN_VARIANTS, UNSEEN_VARIANTS, Speaker, speak, to_opus
from predictor.audio import decode
from predictor.features import SAMPLE_RATE_HZ

CLIPS = testset.read()
MAX_SECONDS = 30.0  # the model's window
REMADE = ("vi-natural-000", "vi-random-157", "hi-natural-095")

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


def file(clip: testset.Clip) -> bytes:
    return (testset.DIRECTORY / clip.audio).read_bytes()


def speaker(clip: testset.Clip) -> Speaker:
    voice, variant, speed, pitch = re.fullmatch(r"(.+)\+(\w+)-s(\d+)-p(\d+)", clip.speaker).groups()
    return Speaker(voice, "" if variant == "plain" else variant, int(speed), int(pitch))


def test_there_are_at_least_300_clips_with_names_of_their_own():
    assert len(CLIPS) >= 300
    assert len({clip.id for clip in CLIPS}) == len({clip.audio for clip in CLIPS}) == len(CLIPS)


def test_each_language_has_the_same_number_of_clips_of_each_kind():
    counts = Counter((clip.language, clip.kind) for clip in CLIPS)
    assert counts == {
        (language, kind): count
        for language in LANGUAGES
        for kind, count in (("natural", testset.NATURAL), ("random", testset.RANDOM))
    }


def test_every_file_has_the_manifests_digest():
    assert [clip.id for clip in CLIPS if hashlib.sha256(file(clip)).hexdigest() != clip.sha256] == []


def test_every_file_decodes_to_the_manifests_duration():
    # Opus keeps the length to the sample at 48 kHz; the manifest rounds to a millisecond.
    for clip in CLIPS:
        assert decode(file(clip), MAX_SECONDS).duration_seconds == pytest.approx(clip.duration_seconds, abs=0.001), (
            clip.id
        )


def test_no_clip_is_silent():
    assert min(float(np.abs(decode(file(clip), MAX_SECONDS).samples).max()) for clip in CLIPS) > 0.1


def test_no_file_is_unlisted():
    present = {
        path.relative_to(testset.DIRECTORY).as_posix() for path in testset.DIRECTORY.rglob("*") if path.is_file()
    }
    assert present == {"manifest.jsonl", *(clip.audio for clip in CLIPS)}


def test_the_test_set_is_smaller_than_10_mb():
    assert sum(path.stat().st_size for path in testset.DIRECTORY.rglob("*") if path.is_file()) < 10_000_000


@pytest.mark.parametrize("language", LANGUAGES)
def test_at_least_a_third_of_the_natural_clips_are_by_speakers_that_training_never_heard(language):
    natural = [clip for clip in CLIPS if (clip.language, clip.kind) == (language, "natural")]
    assert sum(clip.unseen for clip in natural) >= len(natural) / 3


def test_unseen_is_said_of_exactly_the_speakers_whose_variant_is_held_out_of_training():
    assert {*UNSEEN_VARIANTS}.isdisjoint(SEEN_VARIANTS)
    for clip in CLIPS:
        variant = speaker(clip).variant
        assert (variant in SEEN_VARIANTS, variant in UNSEEN_VARIANTS) == (not clip.unseen, clip.unseen), clip.id


def test_every_speaker_of_the_manifest_is_a_speaker():
    assert [clip.id for clip in CLIPS if speaker(clip).id != clip.speaker] == []


def test_the_manifest_holds_the_sentences_that_the_grammars_give_today():
    for language in LANGUAGES:
        held = [(clip.kind, clip.text) for clip in CLIPS if clip.language == language]
        assert held == testset.sentences(language)


def test_no_sentence_of_the_test_set_is_planned_for_training_or_development():
    planned = {text for _, _, text, _ in corpus._jobs(testset.texts())}
    assert len(planned) > 10_000
    assert planned.isdisjoint(clip.text for clip in CLIPS)


def test_the_plan_would_hold_sentences_of_the_test_set_were_they_not_excluded():
    # Or else the test above could not fail.
    planned = {text for _, _, text, _ in corpus._jobs(set())}
    assert not planned.isdisjoint(clip.text for clip in CLIPS)


def test_no_text_occurs_twice_in_the_plan():
    texts = [(language, text) for language, _, text, _ in corpus._jobs(testset.texts())]
    assert len({*texts}) == len(texts)


@needs_espeak
@pytest.mark.parametrize("identity", REMADE)
def test_a_clip_spoken_again_is_the_clip_in_the_repository(identity):
    clip = next(clip for clip in CLIPS if clip.id == identity)
    samples = np.pad(speak(clip.text, speaker(clip)), testset._silence(clip.text))
    assert len(samples) / SAMPLE_RATE_HZ == pytest.approx(clip.duration_seconds, abs=0.0005)
    # The files differ in the serial number of their Ogg stream, which libsndfile draws; what they hold does not.
    again, committed = (decode(data, MAX_SECONDS).samples for data in (to_opus(samples), file(clip)))
    assert np.array_equal(again, committed)
