"""What the operator sees: Prometheus series. The only door to prometheus_client.

Labels take values from fixed sets alone (routes, statuses, the model's languages): a label that a caller can choose
is a way to fill the memory of a monitoring system.
"""

from prometheus_client import Counter, Gauge, Histogram

from predictor.bundle import Bundle
from predictor.transcript import Transcript

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

REQUESTS = Counter("vani_asr_requests", "Requests answered.", ["route", "status"])
REQUEST_SECONDS = Histogram(
    "vani_asr_request_seconds", "From first byte in to last byte out.", ["route"], buckets=_SECONDS
)
PENDING = Gauge("vani_asr_pending_requests", "Requests accepted and not yet answered.")
AUDIO_SECONDS = Counter("vani_asr_audio_seconds", "Audio transcribed.", ["language"])
DECODE_SECONDS = Histogram("vani_asr_decode_seconds", "Decoding of one file, its wait included.", buckets=_SECONDS)
INFER_SECONDS = Histogram("vani_asr_infer_seconds", "Inference of one window, its wait included.", buckets=_SECONDS)
BUNDLE = Gauge("vani_asr_bundle_info", "1 for the bundle that is served.", ["model", "version", "digest"])


def served(model_name: str, bundle: Bundle) -> None:
    """Show which bytes this process answers with."""
    BUNDLE.labels(model_name, bundle.version, bundle.digest).set(1)


def transcribed(transcript: Transcript) -> None:
    AUDIO_SECONDS.labels(transcript.language or "none").inc(transcript.duration_seconds)
