"""Live dictation: audio comes in as it is spoken, partial and final hypotheses go out. No web framework is known here.

    feed -> buffer -> cut -> recognize -> stitch -> events: Partial ... Final ... Done

The models are offline ones and keep nothing between two calls. So what is not final is recognised again and again while
it grows, and shown as partials that may change; it is final, and leaves the buffer, once the speaker has paused or the
model's window is full. Finals come before partials, and of the partials only the latest: a slow engine makes a
dictation late and coarse, but never loses a word.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from predictor import audio, segments, transcript
from predictor.audio import Pcm
from predictor.errors import AudioTooLong, BadRequest, DeadlineExceeded, Overloaded
from predictor.features import SAMPLE_RATE_HZ
from predictor.live.messages import Done, End, Event, Final, Partial, Start, read_message
from predictor.segments import Window
from predictor.transcript import Word

__all__ = ["Dictation", "Done", "End", "Event", "Final", "Pace", "Partial", "Recognize", "Start", "read_message"]

SAMPLE_BYTES = 2

_FINAL_ATTEMPTS = 5  # with the server's own advice on when: a queue that is full for so long will not be empty soon
_BACKLOG_WINDOWS = 2  # one in the engine, one that waits for it
_PAUSE_LOOK_SECONDS = 0.1  # a final is no later than that after its pause is long enough
# The longer the buffer, the rarer it is looked at again, so that nobody's audio is recognised more than so many times.
# It takes effect from 10 s without a pause on.
_LOOKS = 20
# Without a word for so long the speaker has paused, whatever the levels are: a room can be as loud as speech, and a
# microphone that was muted leaves a silence beside which every room is loud.
_WORDLESS_SECONDS = 1.5
_QUIET = 0.001  # of full scale, -60 dB: a muted microphone, and no speech in any room
_SILENCE_KEPT_SECONDS = 2.0  # of a buffer without words: one may have begun that is not yet recognised
_SEAM_SECONDS = 0.5  # before an overlap: a word that ends there may be heard in it once more
# First bytes that are a file's and not sound: what a browser's recorder gives is often sent by mistake.
_FILES = {b"RIFF": "WAV", b"OggS": "OGG", b"fLaC": "FLAC", b"\x1a\x45\xdf\xa3": "WebM"}

Recognize = Callable[[Window, str | None], Awaitable[tuple[list[Word], str | None]]]


@dataclass(frozen=True, slots=True)
class Pace:
    """When a dictation shows and cuts what it has, in seconds of audio."""

    partial_seconds: float = 0.5  # a word or two: more often costs the engine more than a reader sees
    pause_seconds: float = 0.6  # between phrases; within one, stops and breaths are shorter


DEFAULT_PACE = Pace()


class Dictation:
    """One speaker on one connection. Belongs to one event loop.

    The connection's reader calls `feed` and then awaits `room`; `events` is iterated once, beside it. All work is done
    in that iteration, one recognition at a time and without tasks, so that cancelling it leaves nothing behind.
    """

    def __init__(
        self,
        recognize: Recognize,
        language: str | None,
        max_window_seconds: float,
        max_seconds: float,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        """`recognize` is the served recognition of one window, of at most `max_window_seconds`.

        The whole dictation may last `max_seconds`. Without a `language`, that of the first words is kept.
        """
        self._recognize = recognize
        self._language = language
        self._pace = pace
        self._max_seconds = max_seconds
        self._limit = int(max_window_seconds * SAMPLE_RATE_HZ)
        self._overlap = int(min(segments.OVERLAP_SECONDS, max_window_seconds / 3) * SAMPLE_RATE_HZ)
        self._pcm = bytearray()  # what is not final, and at its end perhaps half a sample
        # Positions in the dictation, in samples.
        self._start = 0  # of the buffer
        self._searched = 0  # for pauses
        self._seen = 0  # by a partial
        self._wordless = 0  # in the middle of a stretch in which a partial had no words
        self._held: list[Word] = []  # heard before a cut without a pause, in what the buffer begins with
        self._held_until_seconds: float | None = None
        self._shown = ""  # the text of the last Partial since the last Final
        self._ended = False
        self._news = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    def feed(self, pcm: bytes) -> None:
        """Take the next piece of 16 kHz mono PCM, 16-bit little-endian, of any length; returns at once.

        Raises AudioTooLong beyond the limit, BadRequest after `end` or for a file instead of samples; then nothing of
        `pcm` was taken, and `end` still makes final what came before.
        """
        if self._ended:
            raise BadRequest("audio came after the end of the dictation")
        if self._end == 0 and pcm[:4] in _FILES:
            found = _FILES[pcm[:4]]
            raise BadRequest(f"this is a {found} file; live audio is bare PCM: 16 kHz, mono, 16-bit little-endian")
        if self._start + (len(self._pcm) + len(pcm)) // SAMPLE_BYTES > self._max_seconds * SAMPLE_RATE_HZ:
            raise AudioTooLong(self._max_seconds)
        self._pcm += pcm
        if self._size > _BACKLOG_WINDOWS * self._limit:
            self._has_room.clear()
        self._news.set()

    async def room(self) -> None:
        """Wait while there is more than two windows of audio to be recognised.

        A reader that waits makes a client wait that is faster than recognition, and keeps the memory of a dictation at
        these windows and one message.
        """
        await self._has_room.wait()

    def end(self) -> None:
        """No more audio comes; `events` makes the rest final and ends. May be called twice."""
        self._ended = True
        self._news.set()

    async def events(self) -> AsyncGenerator[Event]:
        """What is heard, until `end`. Raises InferenceFailed, and Overloaded or DeadlineExceeded when that lasts."""
        while not self._ended or self._size:
            if not self._ended:
                await self._news.wait()
            self._news.clear()
            while (cut := self._cut()) is not None:
                final = await self._final(*cut)
                if final is not None:
                    yield final
            if self._due(self._seen, self._pace.partial_seconds) and not self._ended:
                partial = await self._partial()
                if partial is not None:
                    yield partial
        yield Done(self._end / SAMPLE_RATE_HZ)

    @property
    def _size(self) -> int:
        return len(self._pcm) // SAMPLE_BYTES

    @property
    def _end(self) -> int:
        return self._start + self._size

    def _due(self, since: int, seconds: float) -> bool:
        """Whether enough is new since the last look to look again."""
        return self._end - since >= max(seconds * SAMPLE_RATE_HZ, self._size / _LOOKS)

    def _cut(self) -> tuple[int, int] | None:
        """How many samples of the buffer to make final, and how many of these to hear again in the next window."""
        wordless = self._wordless - self._start
        if wordless > 0:
            return wordless, 0
        full = self._size >= self._limit
        if not self._size or not (full or self._ended or self._due(self._searched, _PAUSE_LOOK_SECONDS)):
            return None
        window = self._window(min(self._size, self._limit))
        self._searched = self._start + len(window.samples)
        pause = segments.pause_end(window.samples, self._pace.pause_seconds)
        if pause:
            return pause, 0
        if full and not (self._ended and self._size == self._limit):
            return self._limit, self._overlap
        return (self._size, 0) if self._ended else None

    def _window(self, size: int) -> Window:
        """The first samples of the buffer. They are copied: a view would keep the buffer from growing."""
        samples = np.frombuffer(self._pcm, "<i2", size).astype(np.int16)
        waveform = audio.from_pcm(Pcm(samples, SAMPLE_RATE_HZ), math.inf)
        return Window(self._start / SAMPLE_RATE_HZ, waveform.samples)

    async def _final(self, size: int, overlap: int) -> Event | None:
        """The words of the first samples, less those that the next window will hear again."""
        found, language = await self._surely(self._window(size))
        end_seconds = (self._start + size) / SAMPLE_RATE_HZ
        words = self._stitched(found, end_seconds)
        if found and self._language is None:
            self._language = language
        self._drop(size - overlap)
        self._seen = self._start
        if overlap:
            seam_seconds = self._start / SAMPLE_RATE_HZ - _SEAM_SECONDS
            sure = list(takewhile(lambda word: word.end_seconds <= seam_seconds, words))
            self._held, self._held_until_seconds = words[len(sure) :], end_seconds
            words = sure
        if not words:
            return self._show(self._held)
        self._shown = ""
        return Final(_text(words), tuple(words), words[0].start_seconds, words[-1].end_seconds, self._language)

    async def _surely(self, window: Window) -> tuple[list[Word], str | None]:
        """Recognise, again where the server is busy: these words are lost otherwise."""
        if (np.abs(window.samples) < _QUIET).all():
            return [], None
        for _ in range(_FINAL_ATTEMPTS - 1):
            try:
                return await self._recognize(window, self._language)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_seconds)
            except DeadlineExceeded:
                continue  # it has waited
        return await self._recognize(window, self._language)

    async def _partial(self) -> Partial | None:
        """What the whole buffer says, where that is news."""
        size, old = self._size, self._seen - self._start
        window = self._window(size)
        self._seen = self._end
        quiet = np.abs(window.samples) < _QUIET
        if quiet[old:].all() and not quiet.all():
            return None
        found: list[Word] = []
        if not quiet.all():
            try:
                found, _ = await self._recognize(window, self._language)
            except (Overloaded, DeadlineExceeded):
                return None
        end_seconds = window.start_seconds + size / SAMPLE_RATE_HZ
        words = self._stitched(found, end_seconds)
        if not words:
            self._drop(max(0, size - int(_SILENCE_KEPT_SECONDS * SAMPLE_RATE_HZ)))
        elif end_seconds - words[-1].end_seconds >= _WORDLESS_SECONDS:
            self._wordless = int((end_seconds + words[-1].end_seconds) / 2 * SAMPLE_RATE_HZ)
        return self._show(words)

    def _stitched(self, found: list[Word], end_seconds: float) -> list[Word]:
        """The words of the buffer up to `end_seconds`, with those that were heard before its first cut."""
        if self._held_until_seconds is None:
            return found
        held = [word for word in self._held if word.start_seconds < end_seconds]
        until_seconds = min(self._held_until_seconds, end_seconds)
        held, found = transcript.stitch(held, found, self._start / SAMPLE_RATE_HZ, until_seconds)
        return [*held, *found]

    def _show(self, words: list[Word]) -> Partial | None:
        text = _text(words)
        if text == self._shown:
            return None
        self._shown = text
        return Partial(text, words[0].start_seconds if words else self._start / SAMPLE_RATE_HZ)

    def _drop(self, size: int) -> None:
        """Forget the first samples of the buffer, and what was heard in them."""
        if not size:
            return
        del self._pcm[: size * SAMPLE_BYTES]
        self._start += size
        self._held, self._held_until_seconds = [], None
        if self._size <= _BACKLOG_WINDOWS * self._limit:
            self._has_room.set()


def _text(words: list[Word]) -> str:
    return " ".join(word.text for word in words)
