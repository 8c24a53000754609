"""predictor.edge: what holds for every request, whichever app answers it. Pure ASGI: no socket, no framework."""

import asyncio
import json
import logging
import re
import uuid
from dataclasses import replace
from types import SimpleNamespace

import pytest
from prometheus_client import REGISTRY
from virtual_time import in_virtual_time

from predictor import edge, keys
from predictor.access import Keyring
from predictor.call import Door
from predictor.edge import CALL, Edge
from predictor.errors import InferenceFailed, InvalidAudio, Overloaded, UnknownModel
from predictor.models import Models
from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE

ROUTE = "/v2/models/{model_name}/infer"
PATH = "/v2/models/vani-demo/infer"
SECRET = "số thẻ của tôi là 4111"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SENTENCE = "the transcription failed for a reason that is not the caller's; see the server's log"
MAX_BODY_BYTES = 1_000


@pytest.fixture(scope="module")
def recognizer():
    return Recognizer.load(EMBEDDED_BUNDLE)


@pytest.fixture
def models(recognizer):
    made = Models(lambda directory: recognizer)
    made.add(made.read(EMBEDDED_BUNDLE))
    yield made
    for name in {model.name for model in made}:
        made.remove(name)


@pytest.fixture
def door(models):
    """Call it for a Door."""
    return lambda keyring=None, requests=10, max_bytes=10_000: Door(models, keyring, requests, max_bytes, 60.0)


@pytest.fixture
def keyring(tmp_path):
    """Call it for a Keyring with a key, and the key's secret."""

    def make(limit=None):
        secret = keys.add(tmp_path / "keys", "web", limit)
        return Keyring(tmp_path / "keys"), secret

    return make


@pytest.fixture
def lines(caplog):
    """The log lines of requests, as (level, text), read when called."""
    caplog.set_level(logging.DEBUG, "vani.requests")
    return lambda: [(r.levelno, r.getMessage()) for r in caplog.records if r.name == "vani.requests"]


class Client:
    """What is at the other end: sends a body in pieces, and may go away; keeps what it is answered."""

    def __init__(self, *body, leaves_after=None, path=PATH, method="POST", headers=()):
        self._body, self._leaves_after = list(body) or [b""], leaves_after
        self.gone = asyncio.Event()
        self.sent = []
        self.received = 0
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": SECRET.encode(),
            "headers": [(name.encode(), value.encode("latin-1")) for name, value in dict(headers).items()],
            "client": ("10.1.2.3", 4711),
        }

    async def receive(self):
        if self._leaves_after is not None and self.received >= self._leaves_after:
            return {"type": "http.disconnect"}
        if self._body:
            self.received += 1
            piece = self._body.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self._body)}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        self.sent.append(message)

    async def ask(self, app, door, max_body_bytes=MAX_BODY_BYTES):
        """Status, headers and body of the answer, in an exchange that ends."""
        await Edge(app, door, max_body_bytes)(self.scope, self.receive, self.send)
        return self.answer()

    def answer(self):
        start, *bodies = self.sent
        assert [m["type"] for m in self.sent] == ["http.response.start"] + ["http.response.body"] * len(bodies)
        return start["status"], dict(start["headers"]), b"".join(m["body"] for m in bodies)


async def _read(receive):
    body, more = b"", True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        more = message.get("more_body", False)
    return body


async def _answer(send, status=200, body=b"ok", headers=((b"content-type", b"text/plain"),)):
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


def _app(status=200, route=ROUTE, body=b"ok", inside=lambda scope: None, **options):
    """Reads a body and answers."""

    async def app(scope, receive, send):
        if route is not None:
            scope["route"] = SimpleNamespace(path=route)
        await _read(receive)
        inside(scope)
        await _answer(send, status, body, **options)

    return app


def _raising(error, begun=False):
    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path=ROUTE)
        await _read(receive)
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    return app


async def _never(scope, receive, send):
    raise AssertionError("the app was called")


def _value(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


# Identity


@pytest.mark.parametrize("given", ["a", "req-1.2:3_4", "x" * 128])
async def test_a_request_id_is_answered_as_it_was_given(door, given, lines):
    status, headers, body = await Client(headers={"x-request-id": given}).ask(_app(), door())
    assert (status, body) == (200, b"ok")
    assert headers[b"x-request-id"] == given.encode()
    assert f"request_id={given}" in lines()[0][1]


@pytest.mark.parametrize("given", [None, "", "a b", "a\nstatus=200", "a\n", "x" * 129, "\xff", "<b>"])
async def test_a_request_id_that_is_missing_or_unsafe_is_made_anew(door, given, lines):
    asked = {} if given is None else {"x-request-id": given}
    _, headers, _ = await Client(headers=asked).ask(_app(), door())
    made = headers[b"x-request-id"].decode()
    assert str(uuid.UUID(made)) == made
    assert f"request_id={made}" in lines()[0][1]


async def test_no_two_requests_get_the_same_id(door):
    answers = await asyncio.gather(*(Client().ask(_app(), door()) for _ in range(20)))
    assert len({headers[b"x-request-id"] for _, headers, _ in answers}) == 20


@pytest.mark.parametrize("status", [200, 404, 503])
async def test_every_answer_names_the_model_and_keeps_the_apps_headers(door, models, status):
    app = _app(status, headers=[(b"retry-after", b"1")])
    got, headers, _ = await Client().ask(app, door())
    assert got == status
    assert headers[b"retry-after"] == b"1"
    assert headers[b"x-vani-bundle-digest"] == models.only.digest.encode()
    assert (headers[b"x-vani-model"], headers[b"x-vani-version"]) == (b"vani-demo", b"1")


async def test_of_several_models_an_answer_names_the_one_that_answered_or_none(door, models, recognizer):
    second = models.read(EMBEDDED_BUNDLE)
    models.add(replace(second, name="other"))

    def choose(scope):
        scope[CALL].model = models.find("other")

    _, headers, _ = await Client().ask(_app(), door())
    assert not any(name.startswith(b"x-vani") for name in headers)
    _, headers, _ = await Client().ask(_app(inside=choose), door())
    assert headers[b"x-vani-model"] == b"other"


async def test_without_a_model_an_answer_has_its_id_alone(door, models):
    models.remove("vani-demo")
    _, headers, _ = await Client().ask(_app(), door())
    assert set(headers) == {b"content-type", b"x-request-id"}


async def test_an_answer_without_headers_is_an_answer(door):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 204})  # ASGI: headers are optional
        await send({"type": "http.response.body", "body": b""})

    status, headers, _ = await Client().ask(app, door())
    assert status == 204
    assert b"x-request-id" in headers


async def test_the_trace_id_is_the_callers(door, lines):
    seen = []
    app = _app(inside=lambda scope: seen.append(scope[CALL].trace.trace_id))
    await Client(headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}).ask(app, door())
    assert seen == [TRACE]
    assert f"trace_id={TRACE}" in lines()[0][1]


# Who comes in


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/health"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/page/page.js"),
        ("GET", "/v2/health/live"),
        ("GET", "/v2/health/ready"),
        ("GET", "/v2/models/vani-demo/ready"),
        ("GET", "/v2/models/vani-demo/versions/1/ready"),
        ("OPTIONS", PATH),
    ],
)
async def test_what_probes_scrapers_and_browsers_fetch_needs_no_key(door, keyring, method, path):
    status, headers, _ = await Client(method=method, path=path).ask(_app(), door(keyring()[0]))
    assert status == 200
    assert b"x-request-id" in headers


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", PATH),
        ("POST", "/"),
        ("POST", "/metrics"),
        ("POST", "/v2/models/vani-demo/ready"),
        ("DELETE", "/health"),
        ("GET", "/models"),
        ("GET", "/v1/models"),
        ("GET", "/v2/models/vani-demo"),
        ("GET", "/v2/repository/ready"),
        ("GET", "/healthy"),
        ("GET", "/page"),
        ("GET", "//metrics"),
        ("TRACE", "/"),
    ],
)
async def test_everything_else_does(door, keyring, method, path):
    ring, secret = keyring()
    status, headers, body = await Client(method=method, path=path).ask(_never, door(ring))
    assert status == 401
    assert headers[b"www-authenticate"] == b"Bearer"
    assert "API key" in json.loads(body)["error"]
    good = Client(method=method, path=path, headers={"authorization": f"Bearer {secret}"})
    assert (await good.ask(_app(), door(ring)))[0] == 200


async def test_a_key_is_named_in_the_log_and_never_shown(door, keyring, lines):
    ring, secret = keyring()
    await Client(headers={"x-api-key": secret}).ask(_app(), door(ring))
    await Client(headers={"x-api-key": "vani_" + "A" * 43}).ask(_never, door(ring))
    (_, good), (_, bad) = lines()
    assert good.endswith(" key=web")
    assert "key=" not in bad
    assert secret not in good + bad
    assert "AAAA" not in bad


async def test_a_key_in_debt_is_told_when_to_come_again(door, keyring):
    ring, secret = keyring(60)
    entrance = door(ring)
    entrance.meter.charge(ring.find(secret), 90)
    before = _value("vani_asr_refused_requests_total", reason="rate")
    status, headers, _ = await Client(headers={"authorization": f"bearer {secret}"}).ask(_never, entrance)
    assert status == 429
    assert 25 <= int(headers[b"retry-after"]) <= 31
    assert _value("vani_asr_refused_requests_total", reason="rate") == before + 1


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan", "1e9", ""])
async def test_a_timeout_that_is_none_is_refused(door, text):
    status, _, body = await Client(headers={"x-request-timeout": text}).ask(_never, door())
    assert status == 400
    assert "X-Request-Timeout" in json.loads(body)["error"]


async def test_requests_beyond_the_limit_are_refused_and_places_are_given_back(door):
    entrance, gate = door(requests=2), asyncio.Event()

    async def waiting(scope, receive, send):
        await _read(receive)
        await gate.wait()
        await _answer(send)

    held = [asyncio.create_task(Client().ask(waiting, entrance)) for _ in range(2)]
    await asyncio.sleep(0)
    assert _value("vani_asr_pending_requests") == 2
    before = _value("vani_asr_refused_requests_total", reason="requests")
    status, headers, body = await Client().ask(_never, entrance)
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert "2 requests" in json.loads(body)["error"]
    assert _value("vani_asr_refused_requests_total", reason="requests") == before + 1
    get, *_ = await Client(method="GET", path="/models").ask(_app(), entrance)
    assert get == 200  # to read what is there takes no place
    gate.set()
    assert [answer[0] for answer in await asyncio.gather(*held)] == [200, 200]
    assert entrance.requests.total == 0
    assert _value("vani_asr_pending_requests") == 0


# Bodies


async def test_a_body_of_the_limit_is_let_in_and_counted_while_it_is_held(door):
    for body, headers in ([[b"x" * 1_000], {"content-length": "1000"}], [[b"x" * 400, b"", b"x" * 600], {}]):
        entrance, seen = door(), []
        app = _app(inside=lambda scope, entrance=entrance, seen=seen: seen.append(entrance.bytes.total))
        status, *_ = await Client(*body, headers=headers).ask(app, entrance)
        assert (status, seen, entrance.bytes.total) == (200, [1_000], 0)


async def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(door):
    client = Client(*[b"x" * 500] * 3, headers={"content-length": "1001"})
    status, headers, body = await client.ask(_never, door())
    assert status == 413
    assert "limit of 1000 bytes" in json.loads(body)["error"]
    assert b"connection" in headers
    assert client.received == 2  # as much is read as would have been allowed, so that the answer is seen


async def test_a_body_that_grows_too_large_is_refused_as_it_does(door):
    entrance, client = door(), Client(*[b"x" * 400] * 3, b"x" * 100)
    status, headers, body = await client.ask(_app(), entrance)
    assert status == 413
    assert json.loads(body)["error"].startswith("the request is larger")
    assert client.received == 4
    assert b"connection" not in headers
    assert entrance.bytes.total == 0


@in_virtual_time
async def test_a_body_whose_last_piece_is_too_large_is_refused_at_once(door):
    status, headers, _ = await Client(*[b"x" * 400] * 3).ask(_app(), door())
    assert status == 413
    assert b"connection" not in headers
    assert asyncio.get_running_loop().time() == 0


async def test_an_app_may_answer_an_error_of_its_body_itself(door):
    async def app(scope, receive, send):
        try:
            await _read(receive)
        except edge.PayloadTooLarge:
            await _answer(send, 413, b"mine")

    assert (await Client(*[b"x" * 400] * 3).ask(app, door()))[::2] == (413, b"mine")


async def test_bodies_beyond_what_may_be_in_memory_are_refused(door):
    entrance, gate = door(max_bytes=1_000), asyncio.Event()

    async def waiting(scope, receive, send):
        await _read(receive)
        await gate.wait()
        await _answer(send)

    held = asyncio.create_task(Client(b"x" * 1_000, headers={"content-length": "1000"}).ask(waiting, entrance))
    await asyncio.sleep(0)
    for headers in ({"content-length": "10"}, {}):
        status, answered, body = await Client(b"x" * 10, b"", headers=headers).ask(_app(), entrance)
        assert (status, answered[b"retry-after"]) == (503, b"1")
        assert "1000 bytes are waiting" in json.loads(body)["error"]
    gate.set()
    await held
    assert (entrance.bytes.total, entrance.requests.total) == (0, 0)


@pytest.mark.parametrize("length", ["many", "-5", "1" * 30, "٣"])
async def test_a_length_that_is_none_is_not_believed(door, length):
    client = Client(*[b"x" * 400] * 3, b"")
    client.scope["headers"] = [(b"content-length", length.encode())]
    assert (await client.ask(_app(), door()))[0] == 413


@in_virtual_time
async def test_a_refused_body_that_stalls_is_not_waited_for():
    door = Door(Models(lambda directory: None), None, 1, 1, 60.0)
    door.requests.take("10.1.2.3", 1)
    client = Client(b"x", b"y")
    loop, first = asyncio.get_running_loop(), client.receive

    async def stalling():
        if client.received:
            await asyncio.Event().wait()
        return await first()

    client.receive = stalling
    status, headers, _ = await client.ask(_never, door)
    assert (status, headers[b"connection"]) == (503, b"close")
    assert loop.time() == 5.0


async def test_a_client_that_leaves_a_refused_body_is_no_error(door):
    status, *_ = await Client(b"x", b"y", leaves_after=1, headers={"content-length": "5000"}).ask(_never, door())
    assert status == 413


# Leaving


async def test_a_client_that_goes_away_cancels_its_work_and_is_a_499(door, lines):
    entrance, client, ended = door(), Client(b"body"), []

    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path=ROUTE)
        await _read(receive)
        try:
            client.gone.set()
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    before = _value("vani_asr_refused_requests_total", reason="gone")
    async with asyncio.timeout(5):
        await Edge(app, entrance, MAX_BODY_BYTES)(client.scope, client.receive, client.send)
    assert ended == [True]
    assert client.sent == []
    assert " status=499 " in lines()[0][1]
    assert _value("vani_asr_refused_requests_total", reason="gone") == before + 1
    assert (entrance.requests.total, entrance.bytes.total) == (0, 0)
    assert asyncio.current_task().cancelling() == 0
    await asyncio.sleep(0)  # and nothing is left that cancels later


async def test_a_client_that_goes_away_during_a_stream_ends_it(door, lines):
    client = Client(b"body")

    async def app(scope, receive, send):
        await _read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(1_000):
            await send({"type": "http.response.body", "body": b"%d " % number, "more_body": True})
            if number == 2:
                client.gone.set()
            await asyncio.sleep(0.0001)

    async with asyncio.timeout(5):
        await Edge(app, door(), MAX_BODY_BYTES)(client.scope, client.receive, client.send)
    assert 3 < len(client.sent) < 1_000
    assert " status=499 " in lines()[0][1]


async def test_who_goes_away_with_the_answer_has_it(door, lines):
    client = Client(b"body")

    async def app(scope, receive, send):
        await _read(receive)
        await _answer(send)
        client.gone.set()
        for _ in range(5):
            await asyncio.sleep(0)

    assert (await client.ask(app, door()))[0] == 200
    assert " status=200 " in lines()[0][1]


async def test_a_server_that_stops_tells_who_still_waits_to_try_again(door):
    client, entrance = Client(b"body"), door()

    async def app(scope, receive, send):
        await _read(receive)
        await asyncio.Event().wait()

    task = asyncio.create_task(Edge(app, entrance, MAX_BODY_BYTES)(client.scope, client.receive, client.send))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await task
    assert client.sent[0]["status"] == 503
    assert entrance.requests.total == 0


async def test_an_app_that_asks_again_learns_that_its_client_went_away(door):
    """As Starlette's streaming response does, in a task beside the one that sends."""
    client, heard = Client(b"body"), []

    async def app(scope, receive, send):
        await _read(receive)

        async def listen():
            heard.append((await receive())["type"])

        listener = asyncio.create_task(listen())
        await asyncio.sleep(0)
        assert heard == []
        client.gone.set()
        try:
            await asyncio.Event().wait()
        finally:
            await listener

    async with asyncio.timeout(5):
        await Edge(app, door(), MAX_BODY_BYTES)(client.scope, client.receive, client.send)
    assert heard == ["http.disconnect"]


async def test_an_app_that_reads_its_body_in_another_task_is_cancelled_too(door):
    client = Client(b"body")

    async def app(scope, receive, send):
        await asyncio.create_task(_read(receive))
        client.gone.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(Edge(app, door(), MAX_BODY_BYTES)(client.scope, client.receive, client.send))
    ended, _ = await asyncio.wait([task], timeout=0.1)
    task.cancel()
    assert ended == {task}


async def test_a_client_that_leaves_in_the_middle_of_its_body_is_told_to_the_app(door):
    async def app(scope, receive, send):
        assert (await receive())["more_body"]
        assert (await receive())["type"] == "http.disconnect"
        await _answer(send, 499)

    entrance = door()
    assert (await Client(b"x", b"y", leaves_after=1).ask(app, entrance))[0] == 499
    assert entrance.bytes.total == 0


async def test_a_stream_passes_as_it_comes(door):
    async def app(scope, receive, send):
        await _read(receive)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"%d" % number, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    client = Client()
    status, headers, body = await client.ask(app, door())
    assert (status, body, len(client.sent)) == (200, b"012", 5)
    assert b"x-request-id" in headers


# Errors


@pytest.mark.parametrize(
    ("path", "read"),
    [
        (PATH, lambda body: body["error"]),
        ("/v1/models/vani-demo:predict", lambda body: body["error"]),
        ("/asr", lambda body: body["message"]),
        ("/v1/audio/transcriptions", lambda body: body["error"]["message"]),
    ],
)
async def test_an_unforeseen_error_is_a_fixed_sentence_in_the_shape_of_its_route(door, path, read, caplog):
    client = Client(path=path, headers={"x-request-id": "r1"})
    status, headers, body = await client.ask(_raising(RuntimeError(SECRET)), door())
    assert status == 500
    assert read(json.loads(body)) == SENTENCE
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == str(len(body)).encode()
    assert headers[b"x-request-id"] == b"r1"
    (record,) = [r for r in caplog.records if r.exc_info]
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "unforeseen error request_id=r1")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidAudio("it is empty"), 422),
        (UnknownModel("x", ["y"]), 404),
        (Overloaded("frames", 2, 1, 7), 503),
        (InferenceFailed(), 500),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_an_error_of_ours_that_an_app_lets_through_is_answered_by_its_sentence(door, error, status):
    got, headers, body = await Client().ask(_raising(error), door())
    assert got == status
    assert json.loads(body) == {"error": str(error)}
    assert headers.get(b"retry-after") == (b"7" if status == 503 else None)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(SECRET),
        InferenceFailed(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_error_after_the_answer_began_is_raised_again_and_nothing_more_is_sent(door, error, lines):
    client = Client()
    with pytest.raises(type(error)):
        await Edge(_raising(error, begun=True), door(), MAX_BODY_BYTES)(client.scope, client.receive, client.send)
    assert [m["type"] for m in client.sent] == ["http.response.start"]
    assert len(lines()) == 1


# Lines and series


@pytest.mark.parametrize("app", [_app(body=SECRET.encode()), _app(400), _raising(RuntimeError(SECRET))])
async def test_a_request_has_one_log_line_without_its_text_path_or_errors(door, models, app, lines):
    client = Client(SECRET.encode(), path=f"/{SECRET}")
    status, *_ = await client.ask(app, door())
    ((level, line),) = lines()
    assert level == logging.INFO
    bundle = models.only.digest[7:19]
    pattern = rf"POST {re.escape(ROUTE)} status={status} ms=\d+\.\d request_id=\S+ trace_id=\w{{32}} bundle={bundle}$"
    assert re.match(pattern, line)
    assert not any(part in line for part in SECRET.split())


async def test_facts_noted_while_answering_are_in_the_log_line(door, lines):
    await Client().ask(_app(inside=lambda scope: scope[CALL].facts.update(clips=2, audio_seconds=1.5)), door())
    assert lines()[0][1].endswith(" clips=2 audio_seconds=1.5")


async def test_requests_at_the_same_time_keep_their_ids_and_facts_apart(door, lines):
    async def app(scope, receive, send):
        await asyncio.sleep(0.001)
        scope[CALL].facts["name"] = scope[CALL].id
        await _app()(scope, receive, send)

    entrance = door()
    await asyncio.gather(*(Client(headers={"x-request-id": f"r{index}"}).ask(app, entrance) for index in range(5)))
    pairs = [re.search(r"request_id=(\S+) .* name=(\S+)$", line).groups() for _, line in lines()]
    assert sorted(pairs) == [(f"r{index}", f"r{index}") for index in range(5)]


@pytest.mark.parametrize("route", sorted(edge._QUIET_ROUTES))
async def test_probes_are_logged_for_debugging_alone_unless_they_fail(door, route, lines):
    await Client(method="GET", path="/").ask(_app(route=route), door())
    await Client(method="GET", path="/").ask(_app(503, route=route), door())
    assert [level for level, _ in lines()] == [logging.DEBUG, logging.INFO]


@pytest.mark.parametrize(
    ("app", "route", "status"),
    [
        (_app(), ROUTE, 200),
        (_app(429), ROUTE, 429),
        (_app(404, route=None), "none", 404),
        (_raising(ZeroDivisionError()), ROUTE, 500),
    ],
)
async def test_series_are_labelled_with_the_routes_pattern_or_none(door, app, route, status):
    labels = {"route": route, "status": str(status), "language": "none"}
    counted, timed = _value("vani_asr_requests_total", **labels), _value("vani_asr_request_seconds_count", route=route)
    await Client(path="/v2/models/some-name/infer").ask(app, door())
    assert _value("vani_asr_requests_total", **labels) == counted + 1
    assert _value("vani_asr_request_seconds_count", route=route) == timed + 1
    seen = {s.labels.get("route", "") for m in REGISTRY.collect() if "vani_asr_request" in m.name for s in m.samples}
    assert not any("some-name" in label for label in seen)


# What is no HTTP request


async def test_a_lifespan_passes_untouched(door):
    passed = []

    async def app(*arguments):
        passed.append(arguments)

    arguments = ({"type": "lifespan"}, object(), object())
    await Edge(app, door(), MAX_BODY_BYTES)(*arguments)
    assert passed == [arguments]


def _socket(*messages, error=None):
    """A WebSocket's exchange, in which an app sends these messages: Edge's arguments, and what was sent."""
    sent = []

    async def app(scope, receive, send):
        scope["route"] = SimpleNamespace(path="/v1/dictation")
        for message in messages:
            await send(message)
        if error:
            raise error

    async def send(message):
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1/dictation", "headers": [(b"x-request-id", b"r1")], "client": None}
    return app, (scope, None, send), sent


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([{"type": "websocket.accept"}, {"type": "websocket.close"}], 101),
        ([{"type": "websocket.accept", "headers": [(b"a", b"b")]}], 101),
        ([{"type": "websocket.close", "code": 1008}], 403),
        ([], 500),
    ],
)
async def test_a_websocket_has_its_identity_and_its_line_and_needs_no_key_yet(door, keyring, messages, status, lines):
    app, arguments, sent = _socket(*messages)
    await Edge(app, door(keyring()[0]), MAX_BODY_BYTES)(*arguments)
    accepted = [dict(m["headers"]) for m in sent if m["type"] == "websocket.accept"]
    assert all(headers[b"x-request-id"] == b"r1" for headers in accepted)
    assert all(headers.get(b"a", b"b") == b"b" for headers in accepted)
    ((_, line),) = lines()
    assert line.startswith(f"WEBSOCKET /v1/dictation status={status} ")


async def test_an_error_of_a_websocket_is_logged_under_its_id_and_raised(door, lines, caplog):
    app, arguments, _ = _socket({"type": "websocket.accept"}, error=ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        await Edge(app, door(), MAX_BODY_BYTES)(*arguments)
    assert "unforeseen error request_id=r1" in caplog.text
    assert len(lines()) == 1
