"""Transcripts of audio that was transcribed before: the same bytes, through the same bundle, asked in the same way.

Who shares a cache can tell from the time of an answer whether somebody sent the same audio before, but must have that
audio to ask. That is one reason why it is off unless it is asked for; the other is that it keeps text in memory.
"""

import hashlib
import json
import sys
from collections import OrderedDict
from collections.abc import Sequence
from typing import NewType

from predictor.transcript import Transcript, Word

CacheKey = NewType("CacheKey", bytes)

# As the interpreter counts them: a word with its three floats and its place in the tuple; then, for each entry, what
# holds it: the key of 32 bytes, the pair with the size, and the place in the dictionary with its linked list.
_WORD_BYTES = sys.getsizeof(Word("", 0.0, 0.0, 0.0)) + 3 * sys.getsizeof(0.0)
_ENTRY_BYTES = 512


def key(data: bytes | memoryview, bundle_digest: str, language: str | None, hotwords: Sequence[str] = ()) -> CacheKey:
    """The SHA-256 of everything that decides about a transcript; `data` is contiguous.

    Takes about a millisecond a megabyte, without the interpreter's lock: a thread's work, not the event loop's.
    The audio is hashed by itself first, so that no audio can be made to look like the end of another and its hotwords.
    """
    asked = json.dumps([bundle_digest, language, list(hotwords)])
    return CacheKey(hashlib.sha256(hashlib.sha256(data).digest() + asked.encode()).digest())


class TranscriptCache:
    """The transcripts used last, in at most `max_bytes` of memory; 0 keeps none. Belongs to one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._entries: OrderedDict[CacheKey, tuple[Transcript, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, wanted: CacheKey) -> Transcript | None:
        """The transcript, which is now the one used last."""
        if wanted not in self._entries:
            return None
        self._entries.move_to_end(wanted)
        return self._entries[wanted][0]

    def put(self, wanted: CacheKey, transcript: Transcript) -> None:
        """Keep the transcript, and drop those unused for longest where it needs their place; one too large for the
        whole cache is not kept."""
        size = size_bytes(transcript)
        if size > self.max_bytes:
            return
        self._drop(wanted)
        while self.held_bytes + size > self.max_bytes:
            self._drop(next(iter(self._entries)))
        self._entries[wanted] = (transcript, size)
        self.held_bytes += size

    def _drop(self, wanted: CacheKey) -> None:
        _, size = self._entries.pop(wanted, (None, 0))
        self.held_bytes -= size


def size_bytes(transcript: Transcript) -> int:
    """What an entry with this transcript takes, at most: strings as the interpreter counts them, words by number.

    Too much rather than too little: what the interpreter shares, such as the language's code, is counted each time.
    """
    words = sum(_WORD_BYTES + sys.getsizeof(word.text) for word in transcript.words)
    return _ENTRY_BYTES + sys.getsizeof(transcript.text) + sys.getsizeof(transcript.words) + words
