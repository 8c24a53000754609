"""predictor.keys: any bytes are keys or are refused by line, and an edit changes one line or nothing."""

import os
import re
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predictor import keys
from predictor.keys import InvalidKeys, Key

HASH = "sha256:" + "5e" * 32
WRONG_LIMITS = ("0", "0.000", "-1", "nan", "inf", "1e3", "1.2345", "1234567890", "6٠", "½", ".5", "5.")
SECRET = "vani_" + "s3cr3t" * 7

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True).filter(
    lambda name: not name.lower().startswith("vani_")
)
limits = st.none() | st.integers(1, 10**12 - 1).map(lambda thousandths: thousandths / 1000)
keyrings = st.lists(
    st.builds(Key, names, st.binary(min_size=32, max_size=32), limits),
    unique_by=(lambda key: key.name, lambda key: key.digest),
    max_size=6,
).map(tuple)
comments = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=20).map("# {}".format)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "keys"


def _refusal(text):
    with pytest.raises(InvalidKeys) as caught:
        keys.parse(text if isinstance(text, bytes) else text.encode())
    return str(caught.value)


@given(keyrings)
def test_what_is_written_is_read(found):
    assert keys.parse("\n".join(map(keys.write, found)).encode()) == found


@given(keyrings, st.data())
def test_comments_blank_lines_and_spaces_change_nothing(found, data):
    lines = []
    for key in found:
        lines += data.draw(st.lists(comments | st.sampled_from(["", "  ", "\t", "\r"]), max_size=2))
        lines.append(" " + keys.write(key).replace(" ", "\t ") + data.draw(st.sampled_from(["", "\r", " # since May"])))
    assert keys.parse("\n".join(lines).encode()) == found


@given(st.binary(max_size=200) | st.text("ab _.#:\n1" + HASH, max_size=300).map(str.encode))
@settings(max_examples=300)
def test_any_bytes_are_keys_or_are_refused_in_a_sentence(data):
    try:
        found = keys.parse(data)
    except InvalidKeys as error:
        refusal = str(error)
    else:
        assert all(len(key.digest) == 32 for key in found)
        return
    assert len(refusal) < 300
    assert re.match(r"line \d+: ", refusal)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("web", "'web' needs a hash"),
        ("web 60", "'web' needs a hash"),
        (f"web {HASH[:-1]}", "'web' needs a hash"),
        (f"web {HASH}0", "'web' needs a hash"),
        (f"web {HASH.replace('sha256', 'md5')}", "'web' needs a hash"),
        (f"web {HASH} 60 s", "'web' has more than a hash and a limit"),
        *((f"web {HASH} {limit}", "'web' has a wrong limit") for limit in WRONG_LIMITS),
        (f"{HASH} web", "a name is"),
        (f"wéb {HASH}", "a name is"),
        (f".web {HASH}", "a name is"),
        (f"{'w' * 64} {HASH}", "a name is"),
        (f"old {HASH.replace('5e', '01')}", "'old' has the name of the key in line 2"),
        (f"new {HASH.replace('5e', 'AB')}", "'new' has the hash of the key in line 2"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(line, words):
    text = f"# keys\nold {HASH.replace('5e', 'ab')} 60\n\n{line}\n"
    assert _refusal(text).startswith(f"line 4: {words}")


@pytest.mark.parametrize("line", [SECRET, f"web {SECRET}", f"{SECRET} {HASH}", f"web {HASH} {SECRET}", SECRET.upper()])
def test_a_refusal_never_shows_a_secret_or_a_hash(line):
    refusal = _refusal(line + "\n")
    assert SECRET.lower() not in refusal.lower()
    assert HASH not in refusal
    assert HASH[7:] not in repr(keys.parse(f"web {HASH}".encode()))


def test_what_is_no_text_or_too_much_is_refused():
    assert _refusal(b"# a\n# b\nweb \xff\n") == "line 3: it is not UTF-8"
    assert _refusal(b"\xef\xbb\xbf# a\n\xc3") == "line 2: it is not UTF-8"
    assert "more than 1048576 bytes" in _refusal(b"\n" * (1 << 20) + b"#")


def test_the_mark_that_some_editors_begin_a_file_with_is_no_part_of_a_name():
    assert keys.parse(f"\ufeffweb {HASH}".encode())[0].name == "web"


def test_a_file_that_is_not_there_or_no_file_is_refused(file, tmp_path):
    for path in (file, tmp_path):
        with pytest.raises(InvalidKeys, match="it cannot be read: "):
            keys.read(path)


def test_a_new_key_is_256_random_bits_of_which_the_file_has_the_hash_alone(file):
    secrets = [keys.add(file, name, limit) for name, limit in (("web", None), ("batch", 90.5))]
    assert all(re.fullmatch(r"vani_[A-Za-z0-9_-]{43}", secret) for secret in secrets)
    assert secrets[0] != secrets[1]
    assert keys.read(file) == (
        Key("web", keys.digest_of(secrets[0]), None),
        Key("batch", keys.digest_of(secrets[1]), 90.5),
    )
    assert not any(secret[5:] in file.read_text() for secret in secrets)


def test_a_new_file_is_its_owners_alone_and_an_old_one_keeps_its_mode(file):
    keys.add(file, "web", None)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o640)
    keys.add(file, "batch", None)
    keys.revoke(file, "web")
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_keeps_its_owner_so_that_the_server_can_still_read_it(file):
    keys.add(file, "web", None)
    os.chown(file, 1234, 2345)
    keys.revoke(file, "web")
    assert (file.stat().st_uid, file.stat().st_gid) == (1234, 2345)


def test_an_edit_leaves_every_other_line_as_it_is(file):
    before = f"# ours\r\n  web\t{HASH} 60  # Ann's\n\n# the end, without a new line"
    file.write_bytes(before.encode())
    keys.add(file, "batch", 1.0)
    lines = file.read_bytes().decode().split("\n")
    assert "\n".join(lines[:-2]) == before
    assert re.fullmatch(r"batch sha256:[0-9a-f]{64} 1", lines[-2])
    assert lines[-1] == ""
    keys.revoke(file, "batch")
    assert file.read_bytes().decode() == before + "\n"
    keys.revoke(file, "web")
    assert file.read_bytes().decode() == "# ours\r\n\n# the end, without a new line\n"


def test_an_edit_goes_through_a_link_and_leaves_nothing_beside_the_file(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    keys.add(link, "web", None)
    assert link.is_symlink()
    assert [key.name for key in keys.read(file)] == ["web"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys", "link"]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda file: keys.add(file, "web", None), "there is a key 'web' already"),
        (lambda file: keys.add(file, "two words", None), "a name is"),
        (lambda file: keys.revoke(file, "batch"), "there is no key 'batch'"),
        (lambda file: keys.revoke(file, "#"), "there is no key '#'"),
        (lambda file: keys.revoke(file.with_name("none"), "web"), "it cannot be changed: No such file"),
        (lambda file: keys.add(file / "in" / "a" / "file", "web", None), "it cannot be written: Not a directory"),
        (lambda file: keys.add(file.parent, "web", None), "it cannot be changed: Is a directory"),
    ],
)
def test_an_edit_that_cannot_be_done_changes_nothing(file, tmp_path, edit, words):
    file.write_text(f"web {HASH}\n")
    with pytest.raises(InvalidKeys, match=re.escape(words)):
        edit(file)
    assert file.read_text() == f"web {HASH}\n"
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_that_is_wrong_is_not_edited(file):
    file.write_text("web\n")
    with pytest.raises(InvalidKeys, match="line 1: 'web' needs a hash"):
        keys.add(file, "batch", None)
    assert file.read_text() == "web\n"


def test_a_wrong_line_can_be_taken_out_by_its_name(file):
    file.write_text(f"web\nbatch {HASH}\nweb {HASH.replace('5e', '01')}\n")
    keys.revoke(file, "web")
    assert file.read_text() == f"batch {HASH}\n"


def test_a_change_does_not_begin_while_another_is_under_way(file):
    lock = file.with_name("keys.new")
    lock.touch()
    with pytest.raises(InvalidKeys, match=r"another change is under way; if none is, remove keys\.new"):
        keys.add(file, "web", None)
    assert lock.exists()
    lock.unlink()
    keys.add(file, "web", None)


def test_a_change_that_is_done_leaves_the_lock_of_the_next_one_alone(file, monkeypatch):
    lock, replace = file.with_name("keys.new"), type(file).replace
    monkeypatch.setattr(type(file), "replace", lambda old, new: (replace(old, new), lock.touch()))
    keys.add(file, "web", None)
    assert lock.exists()


def test_of_many_changes_at_once_each_is_made_or_refused(file):
    def change(index):
        try:
            keys.add(file, f"key-{index}", None)
        except InvalidKeys:
            return None
        return f"key-{index}"

    with ThreadPoolExecutor(8) as pool:
        made = [name for name in pool.map(change, range(40)) if name]
    assert sorted(key.name for key in keys.read(file)) == sorted(made) != []
