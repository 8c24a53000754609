"""predictor.edge: ids, the digest, one log line, the series and the last word on errors, for every request."""

import asyncio
import json
import logging
import re
import uuid
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY

from predictor import edge
from predictor.edge import Edge

DIGEST = "sha256:" + "ab" * 32
ROUTE = "/v2/models/{model_name}/infer"
SECRET = "số thẻ của tôi là 4111"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def _answering(status=200, route=ROUTE, headers=((b"content-type", b"text/plain"),), body=b"ok", inside=lambda: None):
    async def app(scope, receive, send):
        if route is not None:
            scope["route"] = SimpleNamespace(path=route)
        await receive()
        inside()
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": body})

    return app


def _failing(begun=False):
    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path=ROUTE)
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError(SECRET)

    return app


async def _call(app, *headers, sent=None, path="/v2/models/vani/infer"):
    """The status, headers and body that a client gets; `sent` collects the messages of a call that fails."""
    messages = [] if sent is None else sent

    async def receive():
        return {"type": "http.request", "body": SECRET.encode(), "more_body": False}

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": SECRET.encode(), "headers": list(headers)}
    await Edge(app, DIGEST)(scope, receive, send)
    start, *bodies = messages
    assert start["type"] == "http.response.start"
    return start["status"], dict(start["headers"]), b"".join(m["body"] for m in bodies)


@pytest.fixture
def lines(caplog):
    """The log lines of requests, as (level, text), read when called."""
    caplog.set_level(logging.DEBUG, "vani.requests")
    return lambda: [(r.levelno, r.getMessage()) for r in caplog.records if "status=" in r.getMessage()]


def _count(route, status):
    return REGISTRY.get_sample_value("vani_asr_requests_total", {"route": route, "status": str(status)}) or 0


def _timed(route):
    return REGISTRY.get_sample_value("vani_asr_request_seconds_count", {"route": route}) or 0


@pytest.mark.parametrize("given", [b"a", b"req-1.2:3_4", b"x" * 128])
async def test_a_request_id_is_answered_as_it_was_given(given, lines):
    status, headers, body = await _call(_answering(), (b"x-request-id", given))
    assert (status, body) == (200, b"ok")
    assert headers[b"x-request-id"] == given
    assert f"request_id={given.decode()}" in lines()[0][1]


@pytest.mark.parametrize(
    "given", [None, b"", b"a b", b"a\nstatus=200", b"a\n", b"x" * 129, "ư".encode(), b"\xff", b"<b>"]
)
async def test_a_request_id_that_is_missing_or_unsafe_is_made_anew(given, lines):
    _, headers, _ = await _call(_answering(), *([] if given is None else [(b"x-request-id", given)]))
    made = headers[b"x-request-id"].decode()
    assert str(uuid.UUID(made)) == made
    assert f"request_id={made}" in lines()[0][1]


async def test_no_two_requests_get_the_same_id():
    answers = await asyncio.gather(*(_call(_answering()) for _ in range(20)))
    assert len({headers[b"x-request-id"] for _, headers, _ in answers}) == 20


@pytest.mark.parametrize("flags", ["00", "01"])
async def test_the_trace_id_is_the_callers(flags, lines):
    seen = []
    traceparent = f"00-{TRACE}-00f067aa0ba902b7-{flags}".encode()
    await _call(_answering(inside=lambda: seen.append(edge.trace_id())), (b"traceparent", traceparent))
    assert seen == [TRACE]
    assert f"trace_id={TRACE}" in lines()[0][1]


@pytest.mark.parametrize(
    "given",
    [
        None,
        b"garbage",
        f"00-{TRACE}".encode(),
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01".encode(),
        f"00-{TRACE}-00f067aa0ba902b7-01\n".encode(),
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",  # W3C Trace Context: all zeros is invalid
        f"ff-{TRACE}-00f067aa0ba902b7-01".encode(),  # and so is the version ff
    ],
)
async def test_a_traceparent_that_is_missing_or_invalid_starts_a_trace_of_its_own(given):
    seen = []
    headers = [] if given is None else [(b"traceparent", given)]
    await _call(_answering(inside=lambda: seen.append(edge.trace_id())), *headers)
    assert re.fullmatch("[0-9a-f]{32}", seen[0])
    assert seen[0] not in (TRACE, "0" * 32)


@pytest.mark.parametrize("status", [200, 404, 503])
async def test_every_answer_names_the_bundle_and_keeps_the_apps_headers(status):
    got, headers, _ = await _call(_answering(status, headers=[(b"retry-after", b"1")]))
    assert got == status
    assert headers[b"x-vani-bundle-digest"] == DIGEST.encode()
    assert headers[b"retry-after"] == b"1"


async def test_an_answer_without_headers_is_an_answer():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204})  # ASGI: headers are optional
        await send({"type": "http.response.body", "body": b""})

    status, headers, _ = await _call(app)
    assert status == 204
    assert b"x-request-id" in headers


async def test_an_unforeseen_error_is_a_fixed_sentence_with_the_request_id(caplog):
    status, headers, body = await _call(_failing(), (b"x-request-id", b"r1"))
    assert status == 500
    assert json.loads(body) == {
        "error": "the transcription failed for a reason that is not the caller's; see the server's log",
        "request_id": "r1",
    }
    assert headers == {
        b"content-type": b"application/json",
        b"content-length": str(len(body)).encode(),
        b"x-request-id": b"r1",
        b"x-vani-bundle-digest": DIGEST.encode(),
    }
    (record,) = [r for r in caplog.records if r.exc_info]
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "unforeseen error request_id=r1")


async def test_an_error_after_the_answer_began_is_raised_again_and_nothing_more_is_sent(lines):
    sent = []
    with pytest.raises(RuntimeError):
        await _call(_failing(begun=True), sent=sent)
    assert [m["type"] for m in sent] == ["http.response.start"]
    assert len(lines()) == 1


@pytest.mark.parametrize("app", [_answering(body=SECRET.encode()), _answering(400), _failing()])
async def test_a_request_has_one_log_line_without_its_text_path_or_errors(app, lines):
    status, *_ = await _call(app, path=f"/{SECRET}")
    ((level, line),) = lines()
    assert level == logging.INFO
    assert re.match(rf"POST {re.escape(ROUTE)} status={status} ms=\d+\.\d request_id=\S+ trace_id=\w{{32}}$", line)
    assert not any(part in line for part in SECRET.split())


async def test_facts_noted_while_answering_are_in_the_log_line(lines):
    await _call(_answering(inside=lambda: edge.note(clips=2, audio_seconds=1.5)))
    assert lines()[0][1].endswith(" clips=2 audio_seconds=1.5")


async def test_requests_at_the_same_time_keep_their_ids_and_facts_apart(lines):
    def app(name):
        async def run(scope, receive, send):
            await asyncio.sleep(0.01)
            edge.note(name=edge.request_id())
            await _answering()(scope, receive, send)

        return _call(run, (b"x-request-id", name.encode()))

    await asyncio.gather(*(app(f"r{index}") for index in range(5)))
    pairs = [re.search(r"request_id=(\S+) .* name=(\S+)$", line).groups() for _, line in lines()]
    assert sorted(pairs) == [(f"r{index}", f"r{index}") for index in range(5)]


def test_outside_a_request_there_is_no_id_and_a_note_goes_nowhere():
    edge.note(clips=1)
    assert (edge.request_id(), edge.trace_id()) == ("", "")


@pytest.mark.parametrize("route", sorted(edge.QUIET_ROUTES))
async def test_probes_are_logged_for_debugging_alone_unless_they_fail(route, lines):
    await _call(_answering(route=route))
    await _call(_answering(503, route=route))
    assert [level for level, _ in lines()] == [logging.DEBUG, logging.INFO]


@pytest.mark.parametrize(
    ("app", "route", "status"),
    [
        (_answering(), ROUTE, 200),
        (_answering(429), ROUTE, 429),
        (_answering(404, route=None), "none", 404),
        (_failing(), ROUTE, 500),
    ],
)
async def test_series_are_labelled_with_the_routes_pattern_or_none(app, route, status):
    counted, timed = _count(route, status), _timed(route)
    await _call(app, path="/v2/models/some-name/infer")
    assert (_count(route, status), _timed(route)) == (counted + 1, timed + 1)
    labels = {s.labels.get("route", "") for m in REGISTRY.collect() if "vani_asr_request" in m.name for s in m.samples}
    assert not any("some-name" in label for label in labels)


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
async def test_what_is_not_http_passes_untouched(kind):
    passed = []

    async def app(*arguments):
        passed.append(arguments)

    arguments = ({"type": kind}, object(), object())
    await Edge(app, DIGEST)(*arguments)
    assert passed == [arguments]
