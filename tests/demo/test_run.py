"""`python -m demo run`, as a user types it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo import testset
from predictor import bundle
from predictor.settings import EMBEDDED_BUNDLE

REPOSITORY = Path(__file__).parents[2]


def run(**settings: str) -> tuple[int, str]:
    """The exit status and the standard output, of a terminal wide enough to break no line."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VANI_ASR_")}
    done = subprocess.run(
        [sys.executable, "-m", "demo", "run"],
        env=environment | settings | {"PYTHONWARNINGS": "ignore", "COLUMNS": "200"},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def shown():
    """What the demo shows, once it has ended well."""
    status, output = run()
    assert status == 0, output
    return output


def test_the_demo_shows_the_error_rates_of_both_languages_and_both_kinds_of_sentences(shown):
    clips = testset.read()
    for language in ("vi", "hi"):
        for kind in ("natural", "random"):
            count = sum((clip.language, clip.kind) == (language, kind) for clip in clips)
            assert re.search(rf"^\s*{language}\s+{kind}\s+{count}\s+\d+\.\d\d%\s*$", shown, re.MULTILINE), shown


def test_the_demo_shows_how_many_times_faster_than_real_time_it_was(shown):
    speed = re.search(r"(\d+) s of speech in [\d.]+ s: (\d+) times real time", shown)
    assert int(speed[1]) == round(sum(clip.duration_seconds for clip in testset.read()))
    assert int(speed[2]) >= 1


def test_the_demo_shows_what_was_said_beside_what_was_understood(shown):
    said = {clip.language for clip in testset.read() if clip.text in shown}
    assert said == {"vi", "hi"}


def test_the_demo_names_the_bundle_and_ends_with_the_server_stopped(shown):
    assert bundle.read(EMBEDDED_BUNDLE).digest[:23] in shown
    assert "the server stopped cleanly" in shown


def test_a_server_that_does_not_come_up_ends_the_demo_with_its_reason():
    status, shown = run(VANI_ASR_BUNDLE="/nonexistent")
    assert status == 1
    assert "the server ended with status 3" in shown
    assert "the bundle is refused: manifest.json cannot be read" in " ".join(shown.split())
    assert "Traceback" not in shown
