"""What the operator sees: Prometheus series. The only door to prometheus_client.

Labels take values from fixed sets alone: routes, statuses, known languages, digests of loaded bundles; the rest is
"other". A label that a caller can choose is a way to fill the memory of a monitoring system.

The quality series need no reference text. None of them is an error rate: what tells is that one moves, or that one
bundle's differs from that of the bundle before it, over the same traffic. So they are by digest.

The series without a prefix are those of the first seed, for the dashboards that read them. Their labels keep their
names, not always their values: `endpoint` is a route's pattern and `checkpoint` a bundle's digest.
"""

import threading
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPMethod, HTTPStatus
from itertools import product
from statistics import fmean
from typing import Literal, get_args

from prometheus_client import Counter, Gauge, Histogram, Summary, disable_created_metrics

from predictor import scripts
from predictor.scripts import LANGUAGES
from predictor.transcript import Transcript

Stage = Literal["read", "decode", "features", "queue", "infer", "search"]

NONE, OTHER = "none", "other"

_FORMATS = {"WAV", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG", "WebM", "MP4", "AMR", "AAC", "MP3", "PCM"}
_OUTCOMES = ("started", "success", "failure")
_METHODS = frozenset(HTTPMethod.__members__)
_STATUSES = frozenset(map(int, HTTPStatus)) | {499}
_MAX_ROUTES = 100  # routes are patterns, some twenty of them; this is for the day that one is a path

# From a refusal (milliseconds) to half an hour of audio on one core (minutes), each two to three times the one before:
# a quantile is known to within that.
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_STAGE_BUCKETS = (0.001, 0.0025, *_SECONDS[:-1])  # a search is shorter than any request
_ROWS = (1, 2, 4, 8, 16, 32, 64)
# Seconds of work a second of audio: an int8 model is at 0.01 on an idle core, the first seed at 0.1 to 0.5, and above 1
# a live speaker is faster than we are.
_FACTORS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
# Fine at the top, where good transcripts are and a decline shows first.
_SHARES = (0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 1)
# The demo's test set is read at 5 to 14, and people in a hurry speak twice as fast: far below, words were lost, and far
# above, they were invented.
_SPEEDS = (0.5, 1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 25, 30, 40)

_BY_BUNDLE = ["digest", "language"]
_BUNDLES = ["model", "version", "digest"]

_REQUESTS = Counter("vani_asr_requests", "Requests answered.", ["route", "status", "language"])
_REQUEST_SECONDS = Histogram("vani_asr_request_seconds", "First byte in to last out.", ["route"], buckets=_SECONDS)
_STAGE_SECONDS = Histogram(
    "vani_asr_stage_seconds", "One stage of a file or window.", ["stage"], buckets=_STAGE_BUCKETS
)
_REFUSED = Counter("vani_asr_refused_requests", "Requests refused, or given up unfinished.", ["reason"])
_PENDING = Gauge("vani_asr_pending_requests", "Requests accepted and not yet answered.")
_IN_FLIGHT = Gauge("vani_asr_audio_seconds_in_flight", "Audio accepted and not yet transcribed: what to scale by.")
_QUEUED = Gauge("vani_asr_queue_frames", "What waits for the engine, in feature frames.")
_BATCH_ROWS = Histogram("vani_asr_batch_rows", "Windows in one engine call.", buckets=_ROWS)
_BATCH_FRAMES = Counter("vani_asr_batch_frames", "Frames of audio that the engine was given.")
_PADDED_FRAMES = Counter("vani_asr_batch_padded_frames", "Frames that the engine computed: the padding included.")
_CACHE = Counter("vani_asr_cache_lookups", "Transcripts looked up by the digest of their audio.", ["result"])
_AUDIO_SECONDS = Counter("vani_asr_audio_seconds", "Audio transcribed.", ["language"])
_REAL_TIME_FACTOR = Histogram("vani_asr_real_time_factor", "Seconds of work a second of audio.", buckets=_FACTORS)
_TRANSCRIPTS = Counter("vani_asr_transcripts", "Transcripts, with words or without.", _BY_BUNDLE)
_EMPTY = Counter("vani_asr_empty_transcripts", "Transcripts without a word.", _BY_BUNDLE)
_CONFIDENCE = Histogram("vani_asr_confidence", "Mean of the words of a transcript.", _BY_BUNDLE, buckets=_SHARES)
_SPEED = Histogram("vani_asr_characters_per_second", "Without spaces, of audio.", _BY_BUNDLE, buckets=_SPEEDS)
_SCRIPT = Histogram("vani_asr_script_share", "Letters in the language's script.", _BY_BUNDLE, buckets=_SHARES)
_QUALITY = (_TRANSCRIPTS, _EMPTY, _CONFIDENCE, _SPEED, _SCRIPT)
_BUNDLE = Gauge("vani_asr_bundle_info", "1 for each bundle that is served.", _BUNDLES)
_LOAD_SECONDS = Gauge("vani_asr_load_seconds", "What it took to load and verify the bundle.", _BUNDLES)

_OLD_REQUESTS = Counter("http_requests", "As vani_asr_requests.", ["method", "endpoint", "status"])
_OLD_SECONDS = Histogram(
    "http_request_duration_seconds", "As vani_asr_request_seconds.", ["method", "endpoint"], buckets=_SECONDS
)
_OLD_COUNT = Counter("transcription_count", "Files, by what became of them.", ["model", "language", "status"])
_OLD_DURATION = Histogram("transcription_duration_seconds", "Of one file.", ["model", "language"], buckets=_SECONDS)
_OLD_AUDIO = Summary("audio_duration_seconds_summary", "Length of the files transcribed.", ["format"])
_OLD_LOADING = Histogram("model_loading_time_seconds", "As vani_asr_load_seconds.", ["model", "checkpoint"])
_OLD_RUNNING = Gauge("inference_in_progress", "Files being transcribed.", ["model"])

disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter and histogram, that nobody asks for

# Made now, so that each is there from zero on: a rate needs two values.
_STAGES = {name: _STAGE_SECONDS.labels(name) for name in get_args(Stage)}
_REASONS = {name: _REFUSED.labels(name) for name in ("queue", "requests", "bytes", "rate", "key", "deadline", "gone")}
_LOOKUPS = {hit: _CACHE.labels("hit" if hit else "miss") for hit in (True, False)}

_lock = threading.Lock()
_served: set[tuple[str, str, str]] = set()  # (model, version, digest)
_routes: set[str] = set()
_in_flight_us = 0  # whole microseconds: a sum of floats does not come back to zero, and an autoscaler waits for zero


def answered(method: str, route: str, status: int, language: str | None, seconds: float) -> None:
    """Count and time one request. `route` is a pattern or "none", `language` the one asked for or found."""
    endpoint, code = _known_route(route), str(status) if status in _STATUSES else OTHER
    verb = method if method in _METHODS else OTHER
    requests, duration, old_requests, old_duration = _of_requests(verb, endpoint, code, _known(language))
    requests.inc()
    duration.observe(seconds)
    old_requests.inc()
    old_duration.observe(seconds)


@lru_cache(maxsize=2_048)  # looking a series up by its labels costs as much as adding to it
def _of_requests(verb: str, endpoint: str, code: str, language: str) -> tuple[Counter, Histogram, Counter, Histogram]:
    return (
        _REQUESTS.labels(endpoint, code, language),
        _REQUEST_SECONDS.labels(endpoint),
        _OLD_REQUESTS.labels(verb, endpoint, code),
        _OLD_SECONDS.labels(verb, endpoint),
    )


def stage(name: Stage, seconds: float) -> None:
    _STAGES[name].observe(seconds)


def refused(reason: str) -> None:
    (_REASONS.get(reason) or _REFUSED.labels(OTHER)).inc()


def pending(requests: int) -> None:
    _PENDING.set(requests)


def queued(frames: int) -> None:
    _QUEUED.set(frames)


def in_flight(seconds: float) -> None:
    """Add accepted audio; negative when it is done. What was added must be taken away, whatever became of it."""
    global _in_flight_us  # noqa: PLW0603  # one number of the process, like the gauge it feeds
    with _lock:
        _in_flight_us += round(seconds * 1e6)
        _IN_FLIGHT.set(_in_flight_us / 1e6)


def batch(rows: int, frames: int, padded_frames: int) -> None:
    """One engine call on `rows` windows: `frames` of audio within the `padded_frames` (rows x longest) it computed.

    Two counters and no ratio: 1 - rate(frames) / rate(padded frames) is the share of work that was padding over any
    span of time and any number of replicas; an average of ratios would give a small batch the weight of a large one.
    """
    _BATCH_ROWS.observe(rows)
    _BATCH_FRAMES.inc(frames)
    _PADDED_FRAMES.inc(padded_frames)


def cache(hit: bool) -> None:
    _LOOKUPS[hit].inc()


@contextmanager
def transcribing(digest: str, language: str | None) -> Iterator[None]:
    """Around the work on one file, for the first seed's series: anything raised inside is a failure, so that
    started = success + failure + in progress."""
    with _lock:
        # Held, for the model may be unloaded before the end.
        started, success, failure, running = _of_work(_model(digest), _known(language))
    started.inc()
    with running.track_inprogress():
        try:
            yield
        except BaseException:
            failure.inc()
            raise
    success.inc()


def transcribed(
    digest: str, transcript: Transcript, processing_seconds: float, audio_format: str | None = None
) -> None:
    """One file became a transcript. `audio_format` is its container's name in `predictor.audio.containers`.

    A bundle that was unloaded meanwhile counts as "other": its series do not come back.
    """
    language, duration = _known(transcript.language), transcript.duration_seconds
    characters = Tally(transcript.text)  # an hour of speech has fifty thousand, and a hundred different ones
    spelled = sum(count for character, count in characters.items() if not character.isspace())
    share = scripts.share(characters, language)
    seconds, old_seconds = _of_audio(language, audio_format if audio_format in _FORMATS else OTHER)
    seconds.inc(duration)
    old_seconds.observe(duration)
    _REAL_TIME_FACTOR.observe(processing_seconds / duration if duration else 0.0)
    with _lock:
        model = _model(digest)
        labels = (digest if model != OTHER else OTHER, language)
        old_duration, transcripts, empty, confidence, speed, script = _of_transcripts(model, *labels)
        old_duration.observe(processing_seconds)
        transcripts.inc()
        empty.inc(not transcript.words)
        if transcript.words:
            confidence.observe(fmean([word.confidence for word in transcript.words]))
            speed.observe(spelled / duration if duration else 0.0)
        if share is not None:
            script.observe(share)


@lru_cache(maxsize=512)
def _of_audio(language: str, audio_format: str) -> tuple[Counter, Summary]:
    return _AUDIO_SECONDS.labels(language), _OLD_AUDIO.labels(audio_format)


@lru_cache(maxsize=256)
def _of_work(model: str, language: str) -> tuple[Counter, Counter, Counter, Gauge]:
    started, success, failure = (_OLD_COUNT.labels(model, language, outcome) for outcome in _OUTCOMES)
    return started, success, failure, _OLD_RUNNING.labels(model)


@lru_cache(maxsize=256)
def _of_transcripts(
    model: str, digest: str, language: str
) -> tuple[Histogram, Counter, Counter, Histogram, Histogram, Histogram]:
    return (
        _OLD_DURATION.labels(model, language),
        _TRANSCRIPTS.labels(digest, language),
        _EMPTY.labels(digest, language),
        _CONFIDENCE.labels(digest, language),
        _SPEED.labels(digest, language),
        _SCRIPT.labels(digest, language),
    )


def loaded(model: str, version: str, digest: str, seconds: float) -> None:
    """Show which bytes this process answers with, and what it took to load them."""
    with _lock:
        _served.add((model, version, digest))
        _of_work.cache_clear()
        _of_transcripts.cache_clear()
        _BUNDLE.labels(model, version, digest).set(1)
        _LOAD_SECONDS.labels(model, version, digest).set(seconds)
        _OLD_LOADING.labels(model, digest).observe(seconds)


def unloaded(model: str, version: str, digest: str) -> None:
    """Take away what names the bundle and, with the last one of them, its digest and its model."""
    languages = (*LANGUAGES, NONE, OTHER)
    with _lock:
        _served.discard((model, version, digest))
        _of_work.cache_clear()
        _of_transcripts.cache_clear()
        _remove([(model, version, digest)], _BUNDLE, _LOAD_SECONDS)
        if not any((name, found) == (model, digest) for name, _, found in _served):
            _remove([(model, digest)], _OLD_LOADING)
        if not any(found == digest for *_, found in _served):
            _remove(product([digest], languages), *_QUALITY)
        if not any(name == model for name, *_ in _served):
            _remove([(model,)], _OLD_RUNNING)
            _remove(product([model], languages), _OLD_DURATION)
            _remove(product([model], languages, _OUTCOMES), _OLD_COUNT)


def _remove(series: Iterable[tuple[str, ...]], *metrics: Counter | Gauge | Histogram) -> None:
    for labels in series:
        for metric in metrics:
            metric.remove(*labels)


def _model(digest: str) -> str:
    return min((model for model, _, found in _served if found == digest), default=OTHER)


def _known(language: str | None) -> str:
    return NONE if not language else language if language in LANGUAGES else OTHER


def _known_route(route: str) -> str:
    if route not in _routes:
        if len(_routes) >= _MAX_ROUTES:
            return OTHER
        _routes.add(route)
    return route
