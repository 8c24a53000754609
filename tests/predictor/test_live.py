"""predictor.live: whatever the pieces, the pace and the engine, finals hold every word once and nothing is left behind.

Real speech goes through the real model. Where a test is about when things happen, time is virtual; and where every
single word is counted, the language is one of tones, which its recogniser cannot mishear: a word is a stretch of one
loudness, and a part of it is no word.
"""

import asyncio
import json
from itertools import pairwise

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import in_virtual_time, run

from demo import testset
from predictor import live, segments
from predictor.errors import AudioTooLong, BadRequest, DeadlineExceeded, InferenceFailed, Overloaded
from predictor.features import SAMPLE_RATE_HZ
from predictor.live import Dictation, Done, End, Final, Pace, Partial, Start
from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE
from predictor.transcript import Word

SECOND_BYTES = SAMPLE_RATE_HZ * live.SAMPLE_BYTES
STEP_SECONDS = 0.01  # in which the loudness of tones is told
STEP_SAMPLES = 160
SIGNS = np.random.default_rng(0).permutation(
    np.repeat([1.0, -1.0], STEP_SAMPLES // 2)
)  # of all frequencies, no constant
FRAGMENT = "…"


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.load(EMBEDDED_BUNDLE)


def _pcm(samples):
    return (np.clip(samples, -1, 1) * 32_767).astype("<i2").tobytes()


def _tone(name, seconds):
    """A word of the language of tones: `name` is a number below 1000 and decides how loud it is."""
    return np.tile(SIGNS, round(seconds * 100)) * (0.2 + name / 2_000)


def _silence(seconds):
    return np.zeros(round(seconds * SAMPLE_RATE_HZ))


class Tones:
    """Recognises the language of tones, `seconds` after it is asked; keeps what it was asked."""

    def __init__(self, lengths, seconds=0.0):
        self.lengths = lengths  # of words by name, in seconds
        self.seconds = seconds
        self.windows = []
        self.at_once = self.most_at_once = self.cancelled = 0
        self.errors = []  # to raise, by call

    async def __call__(self, window, language):
        self.windows.append(window)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_once -= 1
        if self.errors and (error := self.errors.pop(0)):
            raise error
        words = list(self._words(window))
        return words, (language or "xx") if words else None

    def _words(self, window):
        steps = len(window.samples) // STEP_SAMPLES
        loud = np.abs(window.samples[: steps * STEP_SAMPLES]).reshape(steps, STEP_SAMPLES)
        names = np.where(loud.min(1) > 0.1, np.round((loud.mean(1) - 0.2) * 2_000), -1)
        edges = [0, *(np.flatnonzero(np.diff(names)) + 1), steps]
        for first, end in pairwise(edges):
            if end - first > 2 and names[first] >= 0:
                name = int(names[first])
                whole = (end - first) / 100 >= self.lengths.get(name, 9) - 2.5 * STEP_SECONDS
                start = window.start_seconds + first / 100
                yield Word(
                    str(name) if whole else FRAGMENT, round(start, 3), round(start + (end - first) / 100, 3), 1.0
                )


async def _stream(dictation, pcm, sizes=(3_200,), speed=1.0):
    """Send `pcm` in pieces of these sizes, over and over, `speed` times faster than speech; the (time, event) pairs."""
    clock = asyncio.get_running_loop().time

    async def send():
        at, number = 0, 0
        while at < len(pcm):
            piece = pcm[at : at + sizes[number % len(sizes)]]
            dictation.feed(piece)
            await dictation.room()
            await asyncio.sleep(len(piece) / SECOND_BYTES / speed)
            at, number = at + len(piece), number + 1
        dictation.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        return [(clock(), event) async for event in dictation.events()]


def _dictated(*arguments, pace=None, pcm, sizes=(3_200,), speed=1.0):
    """The events of a whole dictation, in virtual time."""

    async def main():
        return await _stream(Dictation(*arguments, *([pace] if pace else [])), pcm, sizes, speed)

    return [event for _, event in run(main())]


def _finals(events):
    return [event for event in events if isinstance(event, Final)]


def _partials(events):
    return [event for event in events if isinstance(event, Partial)]


def _text(events):
    return " ".join(final.text for final in _finals(events))


# Messages


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"type": "start", "key": "k-1"}', Start("k-1")),
        ('{"key": null, "type": "start"}', Start(None)),
        ('{"type": "start"}', Start(None)),
        (' {"type":"end"}\n', End()),
    ],
)
def test_a_client_says_start_and_end(text, message):
    assert live.read_message(text) == message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "end",
        "{",
        "[]",
        '"end"',
        "{}",
        '{"type": "stop"}',
        '{"type": ["end"]}',
        '{"type": "end", "key": "k"}',
        '{"type": "start", "key": 7}',
        '{"type": "start", "language": "vi"}',
        '{"type": "end"}{"type": "end"}',
        '{"type": "end", "pad": "' + "x" * 10_000 + '"}',
        "[" * 4_000,
        "9" * 4_000,
        "\ud800",
    ],
)
def test_every_other_message_is_refused_in_a_short_sentence(text):
    with pytest.raises(BadRequest) as caught:
        live.read_message(text)
    assert len(str(caught.value)) < 150


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["start", "end", "k"]) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "key"]) | st.text(max_size=3), inner)
    ),
    max_leaves=6,
)


@given(st.text() | JSON.map(json.dumps))
def test_any_text_is_read_or_refused(text):
    try:
        message = live.read_message(text)
    except BadRequest:
        return
    assert json.loads(text)["type"] == ("end" if message == End() else "start")


def test_events_are_json_with_their_kind():
    word = Word("chào", 1.5, 1.75, 0.9)
    events = [Partial("xin chào", 1.25), Final("chào", (word,), 1.5, 1.75, "vi"), Done(2.5)]
    written = {"text": "chào", "start_seconds": 1.5, "end_seconds": 1.75, "confidence": 0.9}
    assert [json.loads(event.to_json()) for event in events] == [
        {"type": "partial", "text": "xin chào", "start_seconds": 1.25},
        {
            "type": "final",
            "text": "chào",
            "words": [written],
            "start_seconds": 1.5,
            "end_seconds": 1.75,
            "language": "vi",
        },
        {"type": "done", "duration_seconds": 2.5},
    ]
    assert "chào" in events[0].to_json()


# Real speech


def _speech(recognizer, language, count, gap_seconds):
    """Clips of the test set in a quiet room, each with a pause after it, and what was said."""
    rng = np.random.default_rng(0)
    clips = [clip for clip in testset.read() if clip.language == language and clip.kind == "natural"][:count]
    files = [(testset.DIRECTORY / clip.audio).read_bytes() for clip in clips]
    spoken = [np.append(recognizer.decode(file).samples, _silence(gap_seconds)) for file in files]
    return [samples + rng.normal(0, 0.0005, len(samples)) for samples in spoken], " ".join(clip.text for clip in clips)


def _served(recognizer, seconds=0.0):
    async def recognize(window, language):
        await asyncio.sleep(seconds)
        return recognizer.recognize(window, language)

    return recognize


def _sizes(seed):
    return [int(size) for size in np.random.default_rng(seed).integers(1, 12_000, 97)]


@pytest.mark.parametrize("language", ["vi", "hi"])
def test_phrases_are_recognised_whole_and_one_by_one(recognizer, language):
    phrases, said = _speech(recognizer, language, 10, 1.0)
    starts = set()

    async def recognize(window, language):
        starts.add(window.start_seconds)
        return recognizer.recognize(window, language)

    samples = np.concatenate(phrases)
    events = _dictated(recognize, None, 30.0, 600.0, pcm=_pcm(samples), sizes=_sizes(1))
    cuts = [round(start * SAMPLE_RATE_HZ) for start in starts]
    assert max(np.abs(samples[max(0, cut - 1_600) : cut + 1_600]).max() for cut in cuts) < 0.005  # nobody speaks there
    assert len(_finals(events)) == len(phrases)
    assert {final.language for final in _finals(events)} == {language}
    assert jiwer.wer(said, _text(events)) <= 0.1
    assert events[-1] == Done(len(samples) / SAMPLE_RATE_HZ)


@pytest.mark.parametrize("language", ["vi", "hi"])
def test_speech_without_pauses_is_recognised_across_the_window_limit(recognizer, language):
    phrases, said = _speech(recognizer, language, 12, 0.0)
    pcm = _pcm(np.concatenate(phrases))
    events = _dictated(
        _served(recognizer), language, 8.0, 600.0, pace=Pace(pause_seconds=9.0), pcm=pcm, sizes=_sizes(2)
    )
    assert len(_finals(events)) >= len(pcm) / SECOND_BYTES / 8.0
    # In characters, without spaces: the demo model does not always hear a word's end where a new sentence begins.
    assert jiwer.cer(said.replace(" ", ""), _text(events).replace(" ", "")) <= 0.05


def test_partials_grow_into_the_final(recognizer):
    phrases, _ = _speech(recognizer, "vi", 1, 1.0)
    *partials, final, done = _dictated(_served(recognizer), None, 30.0, 600.0, pcm=_pcm(phrases[0]))
    assert all(isinstance(partial, Partial) for partial in partials)
    assert isinstance(final, Final)
    assert isinstance(done, Done)
    lengths = [len(partial.text) for partial in partials]
    assert len(lengths) >= 3
    assert lengths == sorted(lengths)
    assert final.text.startswith(partials[1].text.rpartition(" ")[0])
    assert partials[-1].start_seconds == pytest.approx(final.start_seconds, abs=0.1)


def test_a_pause_that_no_level_shows_is_told_from_the_words(recognizer):
    """A second of digital silence, as before a microphone is switched on, makes the room after it seem loud."""
    phrases, said = _speech(recognizer, "vi", 4, 2.5)
    samples = np.concatenate([_silence(1.0), *phrases])
    events = _dictated(_served(recognizer), "vi", 30.0, 600.0, pace=Pace(pause_seconds=9.0), pcm=_pcm(samples))
    assert len(_finals(events)) == 4
    assert jiwer.wer(said, _text(events)) <= 0.15


def test_an_engine_slower_than_speech_shows_less_and_says_the_same(recognizer):
    phrases, said = _speech(recognizer, "vi", 8, 1.0)
    pcm = _pcm(np.concatenate(phrases))
    quick, slow = (_dictated(_served(recognizer, s), "vi", 30.0, 600.0, pcm=pcm) for s in (0.01, 6.0))
    assert len(_partials(slow)) < len(_partials(quick)) / 4
    assert jiwer.wer(said, _text(slow)) <= 0.15


# Every word once


LENGTHS = st.lists(st.integers(10, 80), min_size=1, max_size=10) | st.lists(
    st.integers(25, 80), min_size=30, max_size=60
)


@settings(max_examples=15, deadline=None)
@given(
    lengths=LENGTHS,
    pauses=st.sets(st.integers(0, 59), max_size=5),
    sizes=st.lists(st.integers(999, 40_000), min_size=1, max_size=8),
    speed=st.sampled_from([1.0, 50.0]),
    seconds=st.sampled_from([0.0, 0.3, 3.0]),
)
def test_every_word_is_final_once_and_in_order(lengths, pauses, sizes, speed, seconds):
    """At any pace of client and engine, with pauses and without; the window is short, so that many cuts have none."""
    tones = Tones({name: length / 100 for name, length in enumerate(lengths)}, seconds)
    parts = [
        part
        for name, length in enumerate(lengths)
        for part in (_tone(name, length / 100), _silence(1.0 if name in pauses else 0.05))
    ]
    samples = np.concatenate(parts)
    events = _dictated(tones, None, 6.0, 600.0, pcm=_pcm(samples), sizes=sizes, speed=speed)
    assert _text(events).split() == [str(name) for name in range(len(lengths))]
    assert tones.most_at_once == 1
    assert max(len(window.samples) for window in tones.windows) <= 6.0 * SAMPLE_RATE_HZ
    words = [word for final in _finals(events) for word in final.words]
    starts = np.cumsum([0.0, *(len(part) / SAMPLE_RATE_HZ for part in parts)])[:-1:2]
    assert [word.start_seconds for word in words] == pytest.approx(list(starts), abs=0.02)
    assert events[-1] == Done(len(samples) / SAMPLE_RATE_HZ)


@pytest.mark.parametrize("begin_seconds", [0.1, 0.2, 0.3, 0.7, 1.1])
def test_a_pause_that_is_found_only_after_a_cut_without_one_doubles_nothing(monkeypatch, begin_seconds):
    """What is quiet depends on what is near: in an overlap heard again, there may be a pause that was none before."""
    limit, found = 6 * SAMPLE_RATE_HZ, segments.pause_end
    full = []

    def pause_end(samples, min_pause_seconds):
        full.append(len(samples) == limit)
        return found(samples, min_pause_seconds) if any(full[:-1]) else None

    monkeypatch.setattr(segments, "pause_end", pause_end)
    parts = [_silence(begin_seconds)]
    for name in range(20):
        parts += [_tone(name, 0.4), _silence(0.65 if name == 7 else 0.1)]
    tones = Tones(dict.fromkeys(range(20), 0.4))
    events = _dictated(tones, None, 6.0, 60.0, pcm=_pcm(np.concatenate(parts)))
    assert any(full)
    assert _text(events).split() == [str(name) for name in range(20)]


def test_a_final_comes_as_soon_as_the_pause_is_long_enough():
    tones = Tones({1: 0.5, 2: 0.5})
    samples = np.concatenate([_tone(1, 0.5), _tone(2, 0.5), _silence(4.0)])

    async def main():
        return await _stream(Dictation(tones, None, 30.0, 60.0), _pcm(samples), (640,))

    ((time, final),) = [(time, event) for time, event in run(main()) if isinstance(event, Final)]
    assert final.text == "1 2"
    assert (final.start_seconds, final.end_seconds) == pytest.approx((0.0, 1.0), abs=0.02)
    assert 1.58 <= time <= 1.72


def test_a_piece_may_end_within_a_sample():
    tones = Tones({1: 0.5})
    (final,) = _finals(_dictated(tones, None, 30.0, 60.0, pcm=_pcm(_tone(1, 0.5)), sizes=[1, 3, 999]))
    assert final.text == "1"


def test_a_partial_is_sent_only_where_its_text_is_new():
    samples = np.concatenate([_tone(1, 0.4), _tone(2, 3.0), _tone(3, 0.4)])
    events = _dictated(Tones({1: 0.4, 2: 0.4, 3: 0.4}), None, 30.0, 60.0, pcm=_pcm(samples))
    texts = [partial.text for partial in _partials(events)]
    assert texts[:2] == [f"1 {FRAGMENT}", "1 2"]
    assert len(set(texts)) == len(texts)


def test_a_partial_that_turns_out_to_be_nothing_is_taken_back():
    heard = iter([[Word("uh", 0.1, 0.3, 0.2)], []])

    async def recognize(window, language):
        words = next(heard, [])
        return words, "xx" if words else None

    noise = np.random.default_rng(0).normal(0, 0.01, SAMPLE_RATE_HZ)
    events = _dictated(recognize, None, 30.0, 60.0, pcm=_pcm(noise))
    assert [event.text for event in _partials(events)] == ["uh", ""]
    assert _finals(events) == []


def test_the_language_of_the_first_words_is_kept_and_a_given_one_too():
    asked = []
    tones = Tones({1: 0.5, 2: 0.5})

    async def recognize(window, language):
        asked.append(language)
        return await tones(window, language)

    samples = np.concatenate([_tone(1, 0.5), _silence(1.5), _tone(2, 0.5), _silence(1.0)])
    first, second = _finals(_dictated(recognize, None, 30.0, 60.0, pcm=_pcm(samples)))
    assert (first.language, second.language) == ("xx", "xx")
    assert asked[0] is None
    assert asked[-1] == "xx"
    asked.clear()
    given_ones = _finals(_dictated(recognize, "vi", 30.0, 60.0, pcm=_pcm(samples)))
    assert {final.language for final in given_ones} == {*asked} == {"vi"}


def test_nothing_sent_is_nothing_heard():
    assert _dictated(Tones({}), None, 30.0, 60.0, pcm=b"") == [Done(0.0)]
    assert _dictated(Tones({}), None, 30.0, 60.0, pcm=b"\0") == [Done(0.0)]


# Busy servers


def _busy(seconds):
    return Overloaded("requests", 9, 9, seconds)


@pytest.mark.parametrize("error", [_busy(1), DeadlineExceeded(5.0)])
def test_a_partial_that_the_server_has_no_time_for_is_skipped(error):
    samples = np.concatenate([_tone(1, 0.4), _tone(2, 0.6)])
    tones = Tones({1: 0.4, 2: 0.5})
    tones.errors = [error]
    events = _dictated(tones, None, 30.0, 60.0, pcm=_pcm(samples))
    assert [partial.text for partial in _partials(events)] == ["1 2"]
    assert _text(events) == "1 2"


@in_virtual_time
async def test_a_final_waits_as_long_as_a_busy_server_says():
    tones = Tones({1: 0.4})
    tones.errors = [_busy(3), _busy(7), DeadlineExceeded(5.0)]
    heard = await _stream(Dictation(tones, None, 30.0, 60.0), _pcm(_tone(1, 0.4)))
    assert [(time, getattr(event, "text", None)) for time, event in heard] == [
        (pytest.approx(10.4), "1"),
        (pytest.approx(10.4), None),
    ]


@pytest.mark.parametrize("error", [_busy(2), DeadlineExceeded(5.0)])
def test_a_final_is_given_up_in_the_end(error):
    tones = Tones({1: 0.4})
    tones.errors = [error] * 99
    with pytest.raises(ExceptionGroup) as caught:
        _dictated(tones, None, 30.0, 60.0, pcm=_pcm(_tone(1, 0.4)))
    assert caught.value.exceptions == (error,)
    assert len(tones.windows) == 5


@pytest.mark.parametrize("seconds", [0.4, 1.0])
def test_a_failure_of_the_engine_ends_the_dictation(seconds):
    tones = Tones({1: 0.4})
    tones.errors = [InferenceFailed()]
    with pytest.raises(ExceptionGroup) as caught:
        _dictated(tones, None, 30.0, 60.0, pcm=_pcm(_tone(1, seconds)))
    assert isinstance(caught.value.exceptions[0], InferenceFailed)
    assert len(tones.windows) == 1


# Limits


@in_virtual_time
async def test_audio_beyond_the_limit_is_refused_and_what_came_before_is_still_made_final():
    dictation = Dictation(Tones({1: 0.5}), None, 30.0, 0.5)
    dictation.feed(_pcm(_tone(1, 0.5)))
    with pytest.raises(AudioTooLong, match=r"0\.5 seconds"):
        dictation.feed(bytes(2))
    dictation.end()
    events = [event async for event in dictation.events()]
    assert _text(events) == "1"
    assert events[-1] == Done(0.5)


def test_audio_after_the_end_is_refused():
    dictation = Dictation(Tones({}), None, 30.0, 60.0)
    dictation.end()
    dictation.end()
    with pytest.raises(BadRequest, match="after the end"):
        dictation.feed(bytes(2))


@pytest.mark.parametrize(("head", "name"), [(b"RIFF", "WAV"), (b"OggS", "OGG"), (b"\x1a\x45\xdf\xa3", "WebM")])
def test_a_file_is_told_from_bare_samples(head, name):
    dictation = Dictation(Tones({}), None, 30.0, 60.0)
    with pytest.raises(BadRequest, match=f"{name} file.*PCM: 16 kHz"):
        dictation.feed(head + bytes(100))
    dictation.feed(bytes(100))
    dictation.feed(head + bytes(100))


@settings(max_examples=50, deadline=None)
@given(pieces=st.lists(st.binary(max_size=4_000), max_size=12))
def test_any_bytes_are_sound(pieces):
    pieces = [piece for piece in pieces if piece[:4] not in live._FILES]

    async def main():
        dictation = Dictation(Tones({}), None, 2.0, 60.0)
        for piece in pieces:
            dictation.feed(piece)
        dictation.end()
        return [event async for event in dictation.events()]

    assert run(main())[-1] == Done(sum(map(len, pieces)) // 2 / SAMPLE_RATE_HZ)


# What it costs


@in_virtual_time
async def test_a_long_dictation_is_held_in_the_memory_of_its_last_phrase():
    tones = Tones({1: 0.5, 2: 2.0})
    dictation = Dictation(tones, None, 30.0, 3_600.0)
    phrase = _pcm(np.concatenate([_tone(1, 0.5), _tone(2, 2.0), _silence(1.5)]))
    most, finals = 0, 0

    async def send():
        nonlocal most
        for _ in range(150):
            for at in range(0, len(phrase), SECOND_BYTES):
                dictation.feed(phrase[at : at + SECOND_BYTES])
                await asyncio.sleep(1.0)
                most = max(most, len(dictation._pcm))
        dictation.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        async for event in dictation.events():
            finals += isinstance(event, Final) and event.text == "1 2"
            tones.windows.clear()
    assert finals == 150
    assert most <= 5 * SECOND_BYTES


@in_virtual_time
async def test_a_client_faster_than_the_engine_waits_for_it():
    tones = Tones({1: 0.5}, seconds=1.0)
    dictation = Dictation(tones, None, 5.0, 600.0)
    most = 0

    async def send():
        nonlocal most
        for _ in range(200):
            dictation.feed(_pcm(np.concatenate([_tone(1, 0.5), _silence(0.5)])))
            most = max(most, len(dictation._pcm))
            await dictation.room()
        dictation.end()

    async with asyncio.TaskGroup() as group:
        group.create_task(send())
        events = [event async for event in dictation.events()]
    assert _text(events).split() == ["1"] * 200
    assert most <= (2 * 5 + 1) * SECOND_BYTES


def test_a_muted_microphone_costs_no_recognition():
    tones = Tones({})
    quiet = np.random.default_rng(0).uniform(-0.0005, 0.0005, 60 * SAMPLE_RATE_HZ)
    assert _dictated(tones, None, 30.0, 600.0, pcm=_pcm(quiet)) == [Done(60.0)]
    assert len(tones.windows) <= 1


def test_noise_without_words_is_not_recognised_over_and_over():
    tones = Tones({})
    noise = np.random.default_rng(0).normal(0, 0.01, 60 * SAMPLE_RATE_HZ)
    assert _dictated(tones, None, 30.0, 600.0, pcm=_pcm(noise)) == [Done(60.0)]
    assert max(len(window.samples) for window in tones.windows) < 3 * SAMPLE_RATE_HZ


def test_a_long_phrase_is_not_recognised_more_often_than_twenty_times():
    tones = Tones({1: 58.0})
    _dictated(tones, None, 60.0, 600.0, pcm=_pcm(_tone(1, 58.0)))
    recognised = sum(len(window.samples) for window in tones.windows) / SAMPLE_RATE_HZ
    assert recognised <= 58.0 * 20 + 60.0
    assert len(tones.windows) >= 30


@in_virtual_time
async def test_a_connection_that_closes_leaves_nothing_running():
    tones = Tones({1: 0.5}, seconds=100.0)
    dictation = Dictation(tones, None, 30.0, 60.0)
    task = asyncio.create_task(_stream(dictation, _pcm(_tone(1, 3.0))))
    await asyncio.sleep(2.0)
    assert tones.at_once == 1
    task.cancel()
    await asyncio.wait([task])
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert (tones.at_once, tones.cancelled) == (0, 1)


@in_virtual_time
async def test_whoever_stops_listening_between_events_leaves_nothing_running():
    tones = Tones({1: 0.5})
    dictation = Dictation(tones, None, 30.0, 60.0)
    dictation.feed(_pcm(_tone(1, 3.0)))
    events = dictation.events()
    assert isinstance(await anext(events), Partial)
    await events.aclose()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert tones.at_once == 0
