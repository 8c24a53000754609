"""predictor.access: a key is valid as long as the file says so, and no key gets more audio than its share."""

import logging
import os
from pathlib import Path
from shutil import copyfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from predictor import access, keys
from predictor.access import LOOK_SECONDS, InvalidKeys, Key, Keyring, Meter
from predictor.errors import RateLimited, Unauthenticated


class Clock:
    """Virtual time."""

    def __init__(self, now=1_000.0):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys"


@pytest.fixture
def secret(file):
    return keys.add(file, "web", 60.0)


@pytest.fixture
def keyring(file, secret, clock):
    return Keyring(file, clock)


def _valid(keyring, *secrets):
    """Which secrets are let in once the file has been looked at again."""
    keyring._clock.now += LOOK_SECONDS
    found = []
    for secret in secrets:
        try:
            found.append(keyring.find(secret).name)
        except Unauthenticated:
            found.append(None)
    return found


def test_each_key_is_found_by_its_secret(file, clock):
    secrets = {name: keys.add(file, name, None) for name in ("web", "batch", "phone")}
    keyring = Keyring(file, clock)
    assert {name: keyring.find(secret).name for name, secret in secrets.items()} == {name: name for name in secrets}


def test_what_is_no_secret_is_refused_and_told_whether_one_came(keyring, secret):
    for wrong in (secret[:-1], secret + "x", secret.upper(), "web", "\udc80", "sha256:" + keys.digest_of(secret).hex()):
        with pytest.raises(Unauthenticated, match="the API key is not valid"):
            keyring.find(wrong)
    with pytest.raises(Unauthenticated, match="an API key is needed"):
        keyring.find("")


def test_every_key_is_compared_in_constant_time_wherever_the_right_one_stands(file, clock, monkeypatch):
    secrets = [keys.add(file, f"key-{index}", None) for index in range(5)]
    keyring, compared = Keyring(file, clock), []
    original = access.hmac.compare_digest
    monkeypatch.setattr(access.hmac, "compare_digest", lambda a, b: compared.append(a) or original(a, b))
    for secret in secrets:
        keyring.find(secret)
    assert compared == [keys.digest_of(secret) for secret in secrets] * 5


@pytest.mark.parametrize("text", ["", "# nobody yet\n", "web\n", None])
def test_a_file_without_keys_is_refused_at_the_start(file, text):
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidKeys):
        Keyring(file)


def test_a_new_key_is_valid_and_a_revoked_one_is_not_without_a_restart(file, keyring, secret):
    other = keys.add(file, "batch", None)
    assert _valid(keyring, secret, other) == ["web", "batch"]
    keys.revoke(file, "web")
    assert _valid(keyring, secret, other) == [None, "batch"]


def test_a_change_in_place_with_the_size_and_time_of_before_is_seen_too(file, keyring, secret):
    assert _valid(keyring, secret) == _valid(keyring, secret) == ["web"]
    before = file.stat()
    other = "vani_" + "x" * 43
    text = file.read_text().replace(keys.digest_of(secret).hex(), keys.digest_of(other).hex())
    file.write_text(text)  # the same file, so that its number is that of before too
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert _valid(keyring, secret, other) == [None, "web"]


def test_the_second_of_two_changes_with_one_stamp_is_seen_at_the_next_look(file, clock, keyring, secret, monkeypatch):
    monkeypatch.setattr(access, "_stamp", lambda path: (1, 1, 1, 1))  # a file system whose clock stands still
    keyring.find(secret)
    keys.add(file, "batch", None)
    assert _valid(keyring, secret) == ["web"]
    fresh = Keyring(file, clock)
    keys.revoke(file, "web")
    assert _valid(fresh, secret) == [None]


def test_a_swapped_link_is_seen_as_kubernetes_swaps_it(tmp_path, clock):
    secrets = []
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        secrets.append(keys.add(tmp_path / version / "keys", f"web-{version}", None))
    (tmp_path / "..data").symlink_to("1")
    (tmp_path / "keys").symlink_to(Path("..data") / "keys")
    keyring = Keyring(tmp_path / "keys", clock)
    assert _valid(keyring, *secrets) == ["web-1", None]
    (tmp_path / "..data_tmp").symlink_to("2")
    (tmp_path / "..data_tmp").replace(tmp_path / "..data")
    assert _valid(keyring, *secrets) == [None, "web-2"]


def test_the_file_is_looked_at_once_a_second_and_read_when_it_has_changed(file, clock, keyring, secret, monkeypatch):
    looks, reads, stamp, read = [], [], access._stamp, keys.read
    monkeypatch.setattr(access, "_stamp", lambda path: looks.append(clock.now) or stamp(path))
    monkeypatch.setattr(keys, "read", lambda path: reads.append(clock.now) or read(path))
    start = clock.now
    for tenth in range(100):
        clock.now = start + tenth / 10
        keyring.find(secret)
    assert looks == [start + second for second in range(1, 10)]
    assert reads == [start + 1]  # the second look after a change
    keys.add(file, "batch", None)
    for second in (20, 30, 40):
        clock.now = start + second
        keyring.find(secret)
    assert reads == [start + 1, start + 20, start + 30]


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.unlink(),
        lambda file: file.write_text(file.read_text()[:40]),
        lambda file: file.write_text(file.read_text() + "batch\n"),
        lambda file: file.write_bytes(b"\xff"),
        lambda file: (file.unlink(), file.mkdir()),
    ],
    ids=["gone", "cut", "mistyped", "no text", "no file"],
)
def test_a_file_that_cannot_be_used_locks_nobody_out_and_is_logged_once(file, keyring, secret, caplog, harm):
    caplog.set_level(logging.INFO, "vani")
    good = copyfile(file, file.with_name("good"))
    harm(file)
    for _ in range(5):
        assert _valid(keyring, secret, "vani_wrong") == ["web", None]
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "keys of before stay valid" in caplog.text
    assert secret not in caplog.text
    if file.is_dir():
        file.rmdir()
    other = keys.add(good, "batch", None)
    keys.revoke(good, "web")
    good.replace(file)
    assert _valid(keyring, secret, other) == [None, "batch"]
    assert caplog.records[-1].getMessage() == "1 API keys are valid; new: batch; gone: web"


def test_a_file_that_cannot_be_opened_for_a_while_is_read_as_soon_as_it_can(file, keyring, secret, monkeypatch):
    other = keys.add(file, "batch", None)
    keys.revoke(file, "web")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *arguments: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        for _ in range(3):
            assert _valid(keyring, secret, other) == ["web", None]
    assert _valid(keyring, secret, other) == [None, "batch"]


def test_a_file_that_is_mended_to_what_it_was_is_logged_as_usable(file, keyring, secret, caplog):
    caplog.set_level(logging.INFO, "vani")
    text = file.read_text()
    for content in ("half", text, text + "# a comment\n"):
        file.write_text(content)
        assert _valid(keyring, secret) == ["web"]
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "new: none; gone: none" in caplog.text


def test_an_empty_file_is_believed_at_the_second_look_because_one_that_is_being_written_is_empty_too(
    file, keyring, secret, caplog
):
    text = file.read_text()
    file.write_text("")
    assert _valid(keyring, secret) == ["web"]
    file.write_text(text)
    assert _valid(keyring, secret) == ["web"]
    assert _valid(keyring, secret) == ["web"]
    keys.revoke(file, "web")
    assert _valid(keyring, secret) == ["web"]
    assert _valid(keyring, secret) == [None]
    assert caplog.records[-1].levelname == "WARNING"
    file.write_text(text)
    assert _valid(keyring, secret) == ["web"]


def _key(limit, name="web"):
    return Key(name, bytes(32), limit)


def _retry_after(meter, key):
    with pytest.raises(RateLimited) as caught:
        meter.check(key)
    return caught.value.retry_after_seconds


def test_a_key_without_a_limit_is_never_refused(clock):
    meter = Meter(clock)
    meter.charge(_key(None), 1e9)
    meter.check(_key(None))
    assert len(meter._buckets) == 0


def test_a_minutes_worth_may_come_at_once_and_then_as_fast_as_it_fills_up(clock):
    meter, key = Meter(clock), _key(30.0)
    for _ in range(3):
        meter.check(key)
        meter.charge(key, 10)
    assert _retry_after(meter, key) == 1
    clock.now += 1
    meter.check(key)
    meter.charge(key, 10.5)
    assert _retry_after(meter, key) == 21
    clock.now += 3_600
    meter.check(key)
    meter.charge(key, 30)
    assert _retry_after(meter, key) == 1


def test_a_file_longer_than_a_minutes_worth_passes_and_is_paid_for_afterwards(clock):
    meter, key = Meter(clock), _key(60.0)
    meter.check(key)
    meter.charge(key, 1_800)
    assert _retry_after(meter, key) == 1_741
    clock.now += 1_740
    assert _retry_after(meter, key) == 1
    clock.now += 1
    meter.check(key)


def test_one_key_does_not_use_up_the_share_of_another(clock):
    meter = Meter(clock)
    meter.charge(_key(60.0), 100)
    meter.check(_key(60.0, "batch"))


def test_a_limit_that_is_changed_holds_from_then_on(clock):
    meter = Meter(clock)
    meter.charge(_key(60.0), 50)
    clock.now += 60
    meter.charge(_key(6.0), 5)
    meter.check(_key(6.0))
    meter.charge(_key(6.0), 1)
    assert _retry_after(meter, _key(6.0)) == 1
    meter.check(_key(None))


def test_of_too_many_buckets_the_one_unused_for_longest_is_dropped(clock, monkeypatch):
    monkeypatch.setattr(access, "MAX_BUCKETS", 3)
    meter = Meter(clock)
    for name in ("a", "b", "c", "a", "d"):
        meter.charge(_key(60.0, name), 100)
    assert sorted(meter._buckets) == ["a", "c", "d"]
    assert _retry_after(meter, _key(60.0, "a")) == 141


def test_a_file_of_keys_has_fewer_than_there_are_buckets():
    shortest = keys.write(Key("a", bytes(32), 1.0)) + "\n"
    assert keys.MAX_FILE_BYTES / len(shortest) < access.MAX_BUCKETS


amounts = st.floats(0.01, 2_000)
pauses = st.floats(0, 200) | st.sampled_from([0.0, 0.5, 1.0, 60.0])


@given(st.floats(0.5, 5_000), st.lists(st.tuples(pauses, amounts), max_size=60))
@example(60.0, [(0.0, 59.99), (0.0, 300.0), (59.9, 10.0)])
def test_in_any_minute_a_key_gets_two_minutes_worth_and_one_request_at_most(limit, requests):
    clock = Clock()
    meter, key, passed = Meter(clock), _key(limit), []
    for pause, seconds in requests:
        clock.now += pause
        try:
            meter.check(key)
        except RateLimited:
            continue
        meter.charge(key, seconds)
        passed.append((clock.now, seconds))
    for index, (start, _) in enumerate(passed):
        window = [seconds for at, seconds in passed[index:] if at < start + 60]
        assert sum(window) <= 2 * limit + max(window) + 1e-6


@given(st.floats(0.5, 5_000), st.lists(amounts, min_size=1, max_size=20))
def test_who_waits_as_long_as_told_is_let_in_and_a_second_sooner_is_not(limit, requests):
    clock = Clock()
    meter, key = Meter(clock), _key(limit)
    for seconds in requests:
        try:
            meter.check(key)
        except RateLimited as error:
            wait = error.retry_after_seconds
            assert wait >= 1
            clock.now += wait - 1.01
            assert wait == 1 or _retry_after(meter, key) in (1, 2)
            clock.now += 1.01
            meter.check(key)
        meter.charge(key, seconds)
