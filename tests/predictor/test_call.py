"""predictor.call: one door for every protocol, and what it makes of headers that anybody can write."""

import logging
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from predictor import keys
from predictor.access import Keyring
from predictor.call import Door, _read_seconds, refused
from predictor.errors import (
    BadRequest,
    DeadlineExceeded,
    InvalidAudio,
    Overloaded,
    RateLimited,
    Unauthenticated,
)
from predictor.models import Models
from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.load(EMBEDDED_BUNDLE)


@pytest.fixture
def models(recognizer):
    made = Models(lambda directory: recognizer)
    made.add(made.read(EMBEDDED_BUNDLE))
    yield made
    made.remove("vani-demo")


@pytest.fixture
def keyring(tmp_path):
    """Call it with names and limits for a Keyring and its secrets."""

    def make(**limits):
        secrets = {name: keys.add(tmp_path / "keys", name, limit) for name, limit in limits.items()}
        return Keyring(tmp_path / "keys"), secrets

    return make


def _door(models, keyring=None, requests=2, timeout_seconds=60.0):
    return Door(models, keyring, requests, 1_000, timeout_seconds)


def _headers(**given):
    return {name.replace("_", "-"): value for name, value in given.items()}.get


def _opened(door, **given):
    return door.open(_headers(**given), "10.1.2.3", "POST /x")


def _value(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_call_begins_as_its_addresss_with_the_servers_time(models):
    call = _opened(_door(models, timeout_seconds=7.0))
    assert (call.caller, call.key, call.timeout_seconds, call.facts) == ("10.1.2.3", None, 7.0, {})
    assert 6.0 < call.remaining_seconds <= 7.0
    assert call.model is models.only


def test_a_calls_identity_is_its_id_and_the_bytes_that_answer(models):
    call = _opened(_door(models), x_request_id="r1")
    digest = models.only.digest
    model = [("x-vani-bundle-digest", digest), ("x-vani-model", "vani-demo"), ("x-vani-version", "1")]
    assert call.identity() == [("x-request-id", "r1"), *model]
    call.model = None
    assert call.identity() == [("x-request-id", "r1")]


@given(st.one_of(st.text(), st.from_regex(r"[A-Za-z0-9._:-]{1,130}", fullmatch=True)))
def test_a_request_id_is_kept_where_it_is_safe_in_a_log_line_and_made_anew_where_it_is_not(text):
    found = _opened(_door(Models(lambda directory: None)), x_request_id=text).id
    assert re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", found)
    if re.fullmatch(r"[A-Za-z0-9._:-]{1,128}", text):
        assert found == text
    else:
        assert str(uuid.UUID(found)) == found


def test_a_call_goes_on_with_its_callers_trace(models):
    assert _opened(_door(models), traceparent=f"00-{TRACE}-00f067aa0ba902b7-01").trace.trace_id == TRACE
    assert re.fullmatch("[0-9a-f]{32}", _opened(_door(models), traceparent="garbage").trace.trace_id)


# Timeouts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2.5", 2.5), ("2.5s", 2.5), ("1500ms", 1.5), (" 3 ", 3.0), ("0.001", 0.001), ("007", 7.0), ("0.5ms", 0.0005)],
)
def test_a_timeout_is_in_seconds_or_milliseconds(models, text, seconds):
    door = _door(models)
    call = _opened(door)
    door.check(call, _headers(x_request_timeout=text))
    assert call.timeout_seconds == seconds


@pytest.mark.parametrize("text", ["60.1", "999999999", "999999999s"])
def test_a_timeout_never_gives_more_than_the_server_does(models, text):
    door = _door(models)
    call = _opened(door)
    door.check(call, _headers(x_request_timeout=text))
    assert call.timeout_seconds == 60.0


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "0", "0.0", "0ms", "-1", "+1", "1e3", "nan", "inf", "1 s", "1m", "1h", ".5", "5.", "1,5", "1_000"),
        *("²", "9" * 10, "0.0000000001", "1\n2", "s", "ms", "0x10", "1;2"),
    ],
)
def test_a_timeout_that_is_none_is_refused_without_being_repeated(models, text):
    door = _door(models)
    call = _opened(door)
    with pytest.raises(BadRequest) as caught:
        door.check(call, _headers(x_request_timeout=text))
    assert str(caught.value) == "X-Request-Timeout must be a number of seconds above 0, such as 2.5 or 1500ms"
    assert call.timeout_seconds == 60.0


@given(st.one_of(st.text(max_size=30), st.from_regex(r"\s*[0-9.]{1,12}(ms|s)?\s*", fullmatch=True)))
def test_whatever_a_timeout_says_it_is_a_positive_number_or_refused(text):
    try:
        assert 0 < _read_seconds(text) < 1e9
    except BadRequest:
        assert not re.fullmatch(r"[1-9]\d{0,8}(ms|s)?", text)


# Keys


@pytest.mark.parametrize(
    "given",
    [
        {"authorization": "Bearer {}"},
        {"authorization": "bearer {}"},
        {"authorization": "BEARER   {} "},
        {"x_api_key": "{}"},
        {"authorization": "Basic dXNlcjpwYXNz", "x_api_key": "{}"},
    ],
)
def test_a_key_comes_as_a_bearer_or_in_a_header_of_its_own(models, keyring, given):
    ring, secrets = keyring(web=None, mobile=None)
    door = _door(models, ring)
    call = _opened(door)
    door.check(call, _headers(**{name: value.format(secrets["mobile"]) for name, value in given.items()}))
    assert (call.caller, call.key.name, call.facts) == ("mobile", "mobile", {"key": "mobile"})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "an API key is needed"),
        ({"authorization": ""}, "an API key is needed"),
        ({"authorization": "Bearer"}, "an API key is needed"),
        ({"authorization": "Bearer  "}, "an API key is needed"),
        ({"authorization": "Basic dXNlcjpwYXNz"}, "an API key is needed"),
        ({"authorization": "Bearer wrong"}, "the API key is not valid"),
        ({"authorization": "Bearer wrong", "x_api_key": "{}"}, "the API key is not valid"),
        ({"x_api_key": "wrong"}, "the API key is not valid"),
        ({"x_api_key": "{} "}, "the API key is not valid"),
        ({"authorization": "Bearer \xff\x00"}, "the API key is not valid"),
    ],
)
def test_without_a_key_that_is_known_nobody_comes_in(models, keyring, given, sentence):
    ring, secrets = keyring(web=None)
    door = _door(models, ring)
    call = _opened(door)
    with pytest.raises(Unauthenticated, match=sentence):
        door.check(call, _headers(**{name: value.format(secrets["web"]) for name, value in given.items()}))
    assert (call.caller, call.key) == ("10.1.2.3", None)


def test_where_no_keys_are_set_up_everybody_comes_in(models):
    door = _door(models)
    call = _opened(door)
    door.check(call, _headers(authorization="Bearer whatever"))
    assert (call.caller, call.key, door.needs_key) == ("10.1.2.3", None, False)


def test_a_key_that_has_used_its_minute_is_told_when_to_come_again(models, keyring):
    ring, secrets = keyring(web=60, mobile=60)
    door = _door(models, ring)
    door.meter.charge(ring.find(secrets["web"]), 90)
    web, mobile = _opened(door), _opened(door)
    door.check(web, _headers(x_api_key=secrets["web"]))  # it may look around, and not send
    with pytest.raises(RateLimited, match="may send 60 seconds of audio a minute") as caught, door.admit(web):
        pytest.fail("it was let in")
    assert 29 <= caught.value.retry_after_seconds <= 31
    door.check(mobile, _headers(x_api_key=secrets["mobile"]))
    with door.admit(mobile):
        pass


# Places


def test_a_place_is_taken_shown_and_given_back(models):
    door = _door(models)
    call = _opened(door)
    with door.admit(call), door.admit(call):
        assert (door.requests.total, _value("vani_asr_pending_requests")) == (2, 2)
        with pytest.raises(Overloaded), door.admit(call):
            pytest.fail("a third request was let in")
        assert _value("vani_asr_pending_requests") == 2
    assert (door.requests.total, _value("vani_asr_pending_requests")) == (0, 0)
    with pytest.raises(ZeroDivisionError), door.admit(call):
        raise ZeroDivisionError
    assert (door.requests.total, _value("vani_asr_pending_requests")) == (0, 0)


def test_a_key_that_floods_leaves_room_for_another(models, keyring):
    ring, secrets = keyring(flood=None, quiet=None)
    door = _door(models, ring, requests=2)
    calls = {}
    for name, secret in secrets.items():
        calls[name] = _opened(door)
        door.check(calls[name], _headers(x_api_key=secret))
    with door.admit(calls["flood"]), door.admit(calls["flood"]), door.admit(calls["quiet"]):
        assert door.requests.total == 3


# Lines and counts


def test_a_call_ends_in_one_line_with_its_ids_and_facts(models, caplog):
    caplog.set_level(logging.DEBUG, "vani.requests")
    door = _door(models)
    call = _opened(door, x_request_id="r1", traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    call.facts["clips"] = 2
    door.close(call, "POST", "/asr", 200)
    door.close(call, "GET", "/health", 200, quiet=True)
    first, second = caplog.records
    bundle = models.only.digest.removeprefix("sha256:")[:12]
    line = rf"POST /asr status=200 ms=\d+\.\d request_id=r1 trace_id={TRACE} bundle={bundle} clips=2"
    assert re.fullmatch(line, first.getMessage())
    assert (first.levelno, second.levelno) == (logging.INFO, logging.DEBUG)


def test_a_call_that_no_model_answered_names_none(caplog):
    caplog.set_level(logging.INFO, "vani.requests")
    door = _door(Models(lambda directory: None))
    door.close(_opened(door), "POST", "none", 404)
    assert "bundle=" not in caplog.text


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Overloaded("requests", 1, 1, 1), "requests"),
        (Overloaded("bytes", 1, 1, 1), "bytes"),
        (Overloaded("seconds of audio", 1, 1, 1), "queue"),
        (Unauthenticated(given=True), "key"),
        (RateLimited(60, 1), "rate"),
        (DeadlineExceeded(1), "deadline"),
        (InvalidAudio("it is empty"), None),
    ],
    ids=str,
)
def test_a_refusal_is_counted_by_its_reason(error, reason):
    reasons = ["requests", "bytes", "queue", "key", "rate", "deadline", "gone", "other"]
    before = {name: _value("vani_asr_refused_requests_total", reason=name) for name in reasons}
    refused(error)
    after = {name: _value("vani_asr_refused_requests_total", reason=name) for name in reasons}
    assert {name for name in reasons if after[name] != before[name]} == ({reason} if reason else set())
