"""The command line, as a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo import testset
from predictor import keys
from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE, Settings

CLIPS = {clip.language: testset.DIRECTORY / clip.audio for clip in reversed(testset.read()) if clip.kind == "natural"}


def predictor(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "predictor", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def texts():
    recognizer = Recognizer.load(EMBEDDED_BUNDLE)
    return {code: recognizer.transcribe(path.read_bytes()).text for code, path in CLIPS.items()}


def test_one_file_prints_its_text_alone(texts):
    done = predictor("transcribe", CLIPS["vi"])
    assert (done.returncode, done.stdout, done.stderr) == (0, texts["vi"] + "\n", "")


def test_several_files_print_name_and_text_in_the_order_given_with_a_progress_bar(texts):
    done = predictor("transcribe", CLIPS["hi"], CLIPS["vi"], "--jobs", 2)
    assert done.returncode == 0
    assert done.stdout == f"{CLIPS['hi']}\t{texts['hi']}\n{CLIPS['vi']}\t{texts['vi']}\n"
    assert "2/2" in done.stderr


def test_json_has_words_with_times_and_confidence(texts):
    done = predictor("transcribe", CLIPS["hi"], "--format", "json", "--language", "hi")
    answer = json.loads(done.stdout)
    assert answer["text"] == texts["hi"]
    assert answer["language"] == "hi"
    assert " ".join(word["text"] for word in answer["words"]) == texts["hi"]
    starts = [word["start_seconds"] for word in answer["words"]]
    assert starts == sorted(starts)
    assert all(0 < word["confidence"] <= 1 for word in answer["words"])


@pytest.mark.parametrize(("kind", "head"), [("srt", "1\n00:00:0"), ("vtt", "WEBVTT\n\n00:00:0")])
def test_subtitles_hold_the_text(texts, kind, head):
    done = predictor("transcribe", CLIPS["vi"], "--format", kind)
    assert done.stdout.startswith(head)
    cues = [line for line in done.stdout.splitlines() if line and "-->" not in line and line not in ("1", "WEBVTT")]
    assert " ".join(cues) == texts["vi"]


def test_output_gets_a_file_for_each_input(tmp_path, texts):
    done = predictor("transcribe", *CLIPS.values(), "--format", "srt", "--output", tmp_path / "new")
    assert (done.returncode, done.stdout) == (0, "")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(f"{p.name}.srt" for p in CLIPS.values())


def test_one_bad_file_is_named_and_the_others_are_still_transcribed(tmp_path, texts):
    bad = tmp_path / "bad.wav"
    bad.write_text("no audio at all")
    done = predictor("transcribe", bad, CLIPS["vi"], tmp_path / "missing.wav")
    assert done.returncode == 3
    assert done.stdout == f"{CLIPS['vi']}\t{texts['vi']}\n"
    assert f"{bad}: the audio format is not supported: text" in done.stderr
    assert f"{tmp_path / 'missing.wav'}: No such file or directory" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["transcribe"], 2, "FILE"),
        (["transcribe", "a.wav", "--jobs", "0"], 2, "--jobs must be at least 1"),
        (["transcribe", "a.wav", "--max-audio-seconds", "0"], 2, "--max-audio-seconds must be a number above 0"),
        (["transcribe", CLIPS["vi"], "--max-audio-seconds", "1"], 3, "longer than the limit of 1 seconds"),
        (["transcribe", "a.wav", "b.wav", "--format", "srt"], 2, "need --output DIR"),
        (["transcribe", "x/a.wav", "y/a.wav", "--output", "out"], 2, "different names"),
        (["transcribe", CLIPS["vi"], "--language", "xx"], 3, "language 'xx' is not one of this model's: vi, hi"),
        (["transcribe", CLIPS["vi"], "--bundle", "nowhere"], 3, "manifest.json cannot be read"),
        (["keys"], 2, "ACTION"),
        (["keys", "add", "web"], 2, "--file"),
        (["keys", "add", "two words", "--file", "none/keys"], 2, "argument NAME: a name is up to 63 letters"),
        (["keys", "add", "vani_secret", "--file", "none/keys"], 2, "argument NAME: a name is up to 63 letters"),
        (["keys", "add", "a", "--file", "none/keys", "--audio-seconds-per-minute", "0"], 2, "a limit is a number"),
        (["keys", "add", "a", "--file", "none/keys"], 3, "none/keys: it cannot be written: No such file or directory"),
        (["keys", "revoke", "a", "--file", "none"], 3, "none: it cannot be changed: No such file or directory"),
        (["keys", "list", "--file", "none"], 3, "none: it cannot be read: No such file or directory"),
        (["keys", "list", "--file", "pyproject.toml"], 3, "pyproject.toml: line 1: a name is"),
        (["sing"], 2, "invalid choice"),
        ([], 2, "COMMAND"),
    ],
)
def test_wrong_usage_and_wrong_input_have_their_own_status_and_a_sentence(arguments, status, words):
    done = predictor(*arguments)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_is_printed_once_listed_by_name_and_revoked(tmp_path):
    file = tmp_path / "keys"
    added = predictor("keys", "add", "web", "--file", file, "--audio-seconds-per-minute", "600")
    assert added.returncode == 0
    assert keys.read(file) == (keys.Key("web", keys.digest_of(added.stdout.strip()), 600.0),)
    assert added.stdout.strip() not in added.stderr
    assert predictor("keys", "add", "batch", "--file", file).returncode == 0
    again = predictor("keys", "add", "web", "--file", file)
    assert (again.returncode, again.stdout, again.stderr) == (3, "", f"{file}: there is a key 'web' already\n")
    listed = predictor("keys", "list", "--file", file)
    assert (listed.returncode, listed.stdout) == (0, "web\t600 s/min\nbatch\tno limit\n")
    revoked = predictor("keys", "revoke", "web", "--file", file)
    assert (revoked.returncode, revoked.stdout, revoked.stderr) == (0, "", "")
    assert predictor("keys", "list", "--file", file).stdout == "batch\tno limit\n"


def test_keys_load_neither_arrays_nor_a_server(tmp_path):
    arguments = ["keys", "add", "web", "--file", str(tmp_path / "keys")]
    code = f"import sys; from predictor.__main__ import main; main({arguments!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({"numpy", "kserve", "fastapi", "onnxruntime", "soundfile", "av"})


def test_help_teaches_every_setting():
    shown = predictor("serve", "--help").stdout
    assert all(f"VANI_ASR_{name.upper()}" in shown for name in Settings.model_fields)


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m predictor transcribe {CLIPS['vi']} {CLIPS['hi']} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


def test_the_demo_is_part_of_what_is_installed():
    assert (Path(EMBEDDED_BUNDLE) / "manifest.json").is_file()
