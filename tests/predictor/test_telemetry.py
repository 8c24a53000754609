"""predictor.telemetry: the series an operator reads, what they count, and that nobody can make more of them."""

import random
import shutil
import string
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus import BINARY, scraping
from prometheus_client import REGISTRY, generate_latest, start_http_server

from predictor import scripts, telemetry
from predictor.audio.containers import _CONTAINERS, _MP3
from predictor.transcript import Transcript, Word

DIGEST, NEXT = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32
ROUTE = "/v2/models/{model_name}/infer"


@pytest.fixture(autouse=True)
def bundle():
    telemetry.loaded("vani", "1", DIGEST, 1.5)
    yield
    for model, version, digest in list(telemetry._served):
        telemetry.unloaded(model, version, digest)


def _series():
    """Every series of this process, as (name, labels) -> value."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if not sample.name.startswith(("python_", "process_")) and not sample.name.endswith("_created")
    }


def _value(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


@pytest.fixture
def changed():
    """Call it for what has changed since the test began, as {"name{label=value}": by}."""
    before = _series()

    def since():
        after = _series()
        difference = {key: value - before.get(key, 0) for key, value in after.items() if value != before.get(key, 0)}
        return {
            f"{name}{{{','.join(f'{label}={value}' for label, value in labels)}}}": by
            for (name, labels), by in difference.items()
            if not name.endswith("_bucket")
        }

    return since


def _transcript(text="xin chào", language="vi", seconds=2.0, confidence=(0.9, 0.7)):
    words = tuple(Word(word, 0.0, 1.0, c) for word, c in zip(text.split(), confidence * 99, strict=False))
    return Transcript(text, language, seconds, words)


def _share(text, language):
    return scripts.share(Counter(text), language)


def test_a_request_is_counted_by_route_status_and_language_and_timed_by_route(changed):
    telemetry.answered("POST", ROUTE, 200, "vi", 0.25)
    assert changed() == {
        f"vani_asr_requests_total{{language=vi,route={ROUTE},status=200}}": 1,
        f"vani_asr_request_seconds_count{{route={ROUTE}}}": 1,
        f"vani_asr_request_seconds_sum{{route={ROUTE}}}": 0.25,
        f"http_requests_total{{endpoint={ROUTE},method=POST,status=200}}": 1,
        f"http_request_duration_seconds_count{{endpoint={ROUTE},method=POST}}": 1,
        f"http_request_duration_seconds_sum{{endpoint={ROUTE},method=POST}}": 0.25,
    }


@pytest.mark.parametrize("name", ["read", "decode", "features", "queue", "infer", "search"])
def test_a_stage_is_timed(changed, name):
    telemetry.stage(name, 0.5)
    assert changed() == {
        f"vani_asr_stage_seconds_count{{stage={name}}}": 1,
        f"vani_asr_stage_seconds_sum{{stage={name}}}": 0.5,
    }


@pytest.mark.parametrize("reason", ["queue", "requests", "bytes", "rate", "key", "deadline", "gone"])
def test_a_refusal_is_counted_by_its_reason(changed, reason):
    assert ("vani_asr_refused_requests_total", (("reason", reason),)) in _series()  # from zero on
    telemetry.refused(reason)
    assert changed() == {f"vani_asr_refused_requests_total{{reason={reason}}}": 1}


def test_the_share_of_padding_follows_from_two_counters(changed):
    telemetry.batch(rows=1, frames=100, padded_frames=100)
    telemetry.batch(rows=3, frames=150, padded_frames=300)
    after = changed()
    frames, padded = after["vani_asr_batch_frames_total{}"], after["vani_asr_batch_padded_frames_total{}"]
    assert (frames, padded, 1 - frames / padded) == (250, 400, 0.375)
    assert (after["vani_asr_batch_rows_count{}"], after["vani_asr_batch_rows_sum{}"]) == (2, 4)


def test_gauges_show_what_waits():
    telemetry.queued(1_200)
    telemetry.pending(3)
    assert (_value("vani_asr_queue_frames"), _value("vani_asr_pending_requests")) == (1_200, 3)
    telemetry.queued(0)
    telemetry.pending(0)
    assert (_value("vani_asr_queue_frames"), _value("vani_asr_pending_requests")) == (0, 0)


LENGTHS = st.lists(st.floats(0.001, 7_200), max_size=50)


@given(LENGTHS.flatmap(lambda seconds: st.tuples(st.just(seconds), st.permutations(seconds))))
def test_audio_in_flight_comes_back_to_exactly_zero(lengths):
    seconds, order = lengths
    for each in seconds:
        telemetry.in_flight(each)
    assert _value("vani_asr_audio_seconds_in_flight") == pytest.approx(sum(seconds), abs=1e-3)
    for each in order:
        telemetry.in_flight(-each)
    assert _value("vani_asr_audio_seconds_in_flight") == 0


def test_audio_in_flight_is_right_from_many_threads():
    def hold(seconds):
        for _ in range(200):
            telemetry.in_flight(seconds)
            telemetry.in_flight(-seconds)
        telemetry.in_flight(seconds)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(hold, [0.1] * 8))
    assert _value("vani_asr_audio_seconds_in_flight") == 0.8
    telemetry.in_flight(-0.8)


def test_cache_hits_and_misses_are_counted(changed):
    telemetry.cache(hit=True)
    telemetry.cache(hit=False)
    telemetry.cache(hit=False)
    assert changed() == {
        "vani_asr_cache_lookups_total{result=hit}": 1,
        "vani_asr_cache_lookups_total{result=miss}": 2,
    }


def test_a_transcript_counts_its_audio_its_speed_and_its_quality(changed):
    telemetry.transcribed(DIGEST, _transcript(), 0.1, "FLAC")
    by = f"{{digest={DIGEST},language=vi}}"
    assert changed() == pytest.approx(
        {
            "vani_asr_audio_seconds_total{language=vi}": 2.0,
            "vani_asr_real_time_factor_count{}": 1,
            "vani_asr_real_time_factor_sum{}": 0.05,
            f"vani_asr_transcripts_total{by}": 1,
            f"vani_asr_confidence_count{by}": 1,
            f"vani_asr_confidence_sum{by}": 0.8,
            f"vani_asr_characters_per_second_count{by}": 1,
            f"vani_asr_characters_per_second_sum{by}": 3.5,
            f"vani_asr_script_share_count{by}": 1,
            f"vani_asr_script_share_sum{by}": 1.0,
            "audio_duration_seconds_summary_count{format=FLAC}": 1,
            "audio_duration_seconds_summary_sum{format=FLAC}": 2.0,
            "transcription_duration_seconds_count{language=vi,model=vani}": 1,
            "transcription_duration_seconds_sum{language=vi,model=vani}": 0.1,
        }
    )


def test_a_transcript_without_words_is_counted_as_empty_and_says_nothing_of_quality(changed):
    telemetry.transcribed(DIGEST, Transcript("", None, 2.0, ()), 0.1)
    after, by = changed(), f"{{digest={DIGEST},language=none}}"
    assert (after[f"vani_asr_transcripts_total{by}"], after[f"vani_asr_empty_transcripts_total{by}"]) == (1, 1)
    assert not any(name.startswith(("vani_asr_conf", "vani_asr_char", "vani_asr_script")) for name in after)


WRITTEN = {
    "vi": "người việt nam",
    "en": "hello",
    "hi": "नमस्ते दुनिया",
    "mr": "नमस्कार",
    "ne": "नमस्ते",
    "sa": "नमः",
    "kok": "नमस्कार",
    "mai": "प्रणाम",
    "brx": "खुलुमबाय",
    "doi": "नमस्ते",
    "bn": "নমস্কার",
    "as": "নমস্কাৰ ৱ",
    "ta": "வணக்கம்",
    "te": "నమస్కారం",
    "kn": "ನಮಸ್ಕಾರ",
    "ml": "നമസ്കാരം",
    "gu": "નમસ્તે",
    "pa": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ",
    "or": "ନମସ୍କାର",
    "ur": "السلام علیکم پاکستان ٹھیک",
    "ks": "آداب",
    "sd": "سلام ڄ",
    "sat": "ᱡᱚᱦᱟᱨ",
    "mni": "ꯈꯨꯔꯨꯝꯖꯔꯤ",
}


@pytest.mark.parametrize("language", WRITTEN)
def test_what_is_written_in_the_languages_script_has_a_share_of_one(language):
    assert _share(WRITTEN[language], language) == 1


def test_every_language_that_is_known_has_a_script():
    assert set(WRITTEN) == scripts.LANGUAGES


@pytest.mark.parametrize(
    ("text", "language", "share"),
    [
        ("hello नमस", "hi", 3 / 8),
        ("xin chào", "hi", 0.0),
        ("नमस्ते", "vi", 0.0),
        ("xin 123, chào!", "vi", 1.0),
        ("việt".encode().decode(), "vi", 1.0),
        ("việt nam", "vi", 1.0),  # decomposed: marks are no letters
        ("سلام नमस", "sd", 1.0),  # two scripts in official use
        ("হায় ꯈꯨ", "mni", 1.0),
        ("12 ...", "vi", None),
        ("", "vi", None),
        ("hello", "other", None),
        ("hello", "none", None),
    ],
)
def test_the_share_of_script_is_of_letters_alone(text, language, share):
    assert _share(text, language) == share


@given(text=st.text(), language=st.sampled_from(sorted(WRITTEN)))
def test_any_text_has_a_share_between_none_and_all(text, language):
    share = _share(text, language)
    assert share is None or 0 <= share <= 1


def test_a_transcript_of_fifty_thousand_letters_is_counted_in_milliseconds():
    words = random.choices(WRITTEN["hi"].split() + WRITTEN["vi"].split(), k=10_000)
    long = _transcript(" ".join(words), "hi", 3_600.0)

    def once():
        started = time.perf_counter()
        telemetry.transcribed(DIGEST, long, 60.0)
        return time.perf_counter() - started

    assert len(long.text) > 40_000
    assert min(once() for _ in range(5)) < 0.1


def test_a_bundle_is_shown_while_it_is_loaded():
    labels = {"model": "vani", "version": "1", "digest": DIGEST}
    assert (_value("vani_asr_bundle_info", **labels), _value("vani_asr_load_seconds", **labels)) == (1, 1.5)
    assert _value("model_loading_time_seconds_sum", model="vani", checkpoint=DIGEST) == 1.5
    telemetry.unloaded("vani", "1", DIGEST)
    assert not any(DIGEST in str(labels) or "'vani'" in str(labels) for _, labels in _series())


def test_loading_and_unloading_leaves_nothing_behind():
    before = set(_series())
    for number in range(200):
        telemetry.loaded(f"model-{number}", "1", f"sha256:{number}", 1.0)
        with telemetry.transcribing(f"sha256:{number}", "vi"):
            telemetry.transcribed(f"sha256:{number}", _transcript(language=random.choice([*WRITTEN, None])), 0.1)
        telemetry.unloaded(f"model-{number}", "1", f"sha256:{number}")
    assert {name for name, _ in set(_series()) - before} <= {"vani_asr_audio_seconds_total"}  # by language alone


def test_a_digest_that_two_models_serve_keeps_its_series_until_the_last_is_unloaded():
    telemetry.loaded("vani-b", "1", DIGEST, 1.0)
    telemetry.transcribed(DIGEST, _transcript(), 0.1)
    telemetry.unloaded("vani", "1", DIGEST)
    by = {"digest": DIGEST, "language": "vi"}
    assert _value("vani_asr_transcripts_total", **by) == 1
    telemetry.unloaded("vani-b", "1", DIGEST)
    assert _value("vani_asr_transcripts_total", **by) == 0


def test_a_model_whose_bundle_is_replaced_keeps_its_own_series_and_loses_the_old_digests():
    with telemetry.transcribing(DIGEST, "vi"):
        telemetry.transcribed(DIGEST, _transcript(), 0.1)
    telemetry.loaded("vani", "2", NEXT, 1.0)
    telemetry.unloaded("vani", "1", DIGEST)
    assert _value("transcription_count_total", model="vani", language="vi", status="success") == 1
    assert not any(DIGEST in str(labels) for _, labels in _series())


def test_what_ends_after_its_bundle_was_unloaded_counts_as_other(changed):
    with telemetry.transcribing(DIGEST, "vi"):
        telemetry.unloaded("vani", "1", DIGEST)
        telemetry.transcribed(DIGEST, _transcript(), 0.1)
    assert changed()["vani_asr_transcripts_total{digest=other,language=vi}"] == 1
    assert not any(DIGEST in str(labels) or "'vani'" in str(labels) for _, labels in _series())


def test_files_started_are_those_that_succeeded_failed_or_are_in_progress():
    def count(status):
        return _value("transcription_count_total", model="vani", language="hi", status=status)

    with telemetry.transcribing(DIGEST, "hi"):
        assert (count("started"), count("success"), _value("inference_in_progress", model="vani")) == (1, 0, 1)
    with pytest.raises(KeyboardInterrupt), telemetry.transcribing(DIGEST, "hi"):
        raise KeyboardInterrupt
    assert [count(status) for status in ("started", "success", "failure")] == [2, 1, 1]
    assert _value("inference_in_progress", model="vani") == 0


def test_the_formats_are_those_that_are_read_and_bare_samples():
    assert {container.name for _, container in _CONTAINERS} | {_MP3.name, "PCM"} == telemetry._FORMATS


def _odd():
    return "".join(random.choices(string.printable + "ằ한\0\u202e😀", k=random.randint(10, 300)))


def _anything():
    """What a careless caller of this module might hand on from a careless client."""
    telemetry.answered(_odd(), f"/{_odd()}", random.randint(600, 10**9), random.choice([None, _odd()]), 0.1)
    telemetry.refused(_odd())
    with telemetry.transcribing(_odd(), _odd()):
        telemetry.transcribed(_odd(), _transcript(_odd(), _odd()), random.random(), _odd())


def test_odd_inputs_by_the_thousand_make_a_bounded_number_of_series(monkeypatch):
    monkeypatch.setattr(telemetry, "_routes", set())
    for _ in range(500):
        _anything()
    bounded = set(_series())
    assert len(bounded) < 5_000
    for _ in range(2_000):
        _anything()
    assert set(_series()) == bounded
    assert generate_latest(REGISTRY).decode()


def test_a_real_status_method_and_language_are_never_other(changed):
    for method in ("GET", "POST", "DELETE", "OPTIONS"):
        for status in (101, 200, 400, 401, 404, 413, 415, 422, 429, 499, 500, 503, 504):
            telemetry.answered(method, "/health", status, "mni", 0.1)
    assert not any("other" in name for name in changed())


service = pytest.mark.service
with_prometheus = pytest.mark.skipif(BINARY is None, reason="there is no prometheus on PATH")
with_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="there is no promtool on PATH")

SERVE = """
import sys
from prometheus_client import start_http_server
from predictor import telemetry
from predictor.transcript import Transcript, Word

digest, route = sys.argv[1:]
server, _ = start_http_server(0, "127.0.0.1")
print(server.server_address[1], flush=True)
telemetry.loaded("vani", "1", digest, 1.5)
for command in sys.stdin:
    for number in range(10):
        telemetry.answered("POST", route, 503 if number == 9 else 200, "vi", 0.2)
        telemetry.stage("infer", 0.02)
        telemetry.batch(rows=2, frames=300, padded_frames=400)
        telemetry.cache(hit=number < 4)
        spoken = (Word("xin", 0.0, 0.5, 0.9),) if number < 8 else ()
        with telemetry.transcribing(digest, "vi"):
            telemetry.transcribed(digest, Transcript("xin" if spoken else "", "vi", 2.0, spoken), 0.1, "WAV")
    telemetry.refused("queue")
    telemetry.in_flight(12.5)
    telemetry.queued(700)
    telemetry.pending(3)
    print("done", flush=True)
"""

ANSWERS = {  # an operator's questions, and the answers to what `SERVE` does
    "vani_asr_audio_seconds_in_flight": 25,
    "vani_asr_queue_frames": 700,
    "vani_asr_pending_requests": 3,
    'sum(rate(vani_asr_requests_total{status=~"5.."}[20s])) / sum(rate(vani_asr_requests_total[20s]))': 0.1,
    "sum(rate(vani_asr_request_seconds_sum[20s])) / sum(rate(vani_asr_request_seconds_count[20s]))": 0.2,
    "1 - rate(vani_asr_batch_frames_total[20s]) / rate(vani_asr_batch_padded_frames_total[20s])": 0.25,
    "rate(vani_asr_batch_rows_sum[20s]) / rate(vani_asr_batch_rows_count[20s])": 2,
    'sum(rate(vani_asr_cache_lookups_total{result="hit"}[20s])) / sum(rate(vani_asr_cache_lookups_total[20s]))': 0.4,
    "rate(vani_asr_real_time_factor_sum[20s]) / rate(vani_asr_real_time_factor_count[20s])": 0.05,
    f'vani_asr_empty_transcripts_total{{digest="{DIGEST}"}} / vani_asr_transcripts_total': 0.2,
    f'vani_asr_confidence_sum{{digest="{DIGEST}",language="vi"}} / vani_asr_confidence_count': 0.9,
    f'vani_asr_characters_per_second_sum{{digest="{DIGEST}"}} / vani_asr_characters_per_second_count': 1.5,
    'vani_asr_script_share_sum{language="vi"} / vani_asr_script_share_count': 1,
    'vani_asr_load_seconds * on(digest) vani_asr_bundle_info{model="vani",version="1"}': 1.5,
    'increase(vani_asr_refused_requests_total{reason="queue"}[20s]) > bool 0': 1,
    'sum(rate(vani_asr_stage_seconds_sum{stage="infer"}[20s])) / sum(rate(vani_asr_stage_seconds_count[20s]))': 0.02,
    "histogram_quantile(0.5, sum by (le) (rate(vani_asr_request_seconds_bucket[20s]))) < bool 0.25": 1,
    # the first seed's
    'sum(http_requests_total{method="POST",status="200"})': 18,
    "http_request_duration_seconds_sum / http_request_duration_seconds_count": 0.2,
    'transcription_count_total{model="vani",language="vi",status="success"}': 20,
    'transcription_duration_seconds_sum{model="vani"} / transcription_duration_seconds_count': 0.1,
    'audio_duration_seconds_summary_sum{format="WAV"}': 40,
    f'model_loading_time_seconds_sum{{model="vani",checkpoint="{DIGEST}"}}': 1.5,
    'inference_in_progress{model="vani"}': 0,
}


@service
@with_prometheus
def test_a_real_prometheus_answers_an_operators_questions(tmp_path):
    command = [sys.executable, "-c", SERVE, DIGEST, ROUTE]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        port = int(process.stdout.readline())
        with scraping(tmp_path, f"127.0.0.1:{port}") as prometheus:
            for times in (1, 2):  # for a rate is the difference between two scrapes, and a new series has no first
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "done\n"
                prometheus.wait(f"vani_asr_audio_seconds_in_flight == {times * 12.5}")
            found = {question: prometheus.value(question) for question in ANSWERS}
            (target,) = prometheus.targets()
        process.terminate()
    assert (target["health"], target["lastError"]) == ("up", "")
    assert found == pytest.approx(ANSWERS)


@service
@with_promtool
def test_the_exposition_is_what_prometheus_parses():
    server, thread = start_http_server(0, "127.0.0.1")
    try:
        telemetry.answered("POST", ROUTE, 200, "vi", 0.1)
        page = httpx.get(f"http://127.0.0.1:{server.server_address[1]}/metrics").text
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("vani_asr_")]
    assert ours == []
