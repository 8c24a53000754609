"""What the documentation claims is run."""

import re
from pathlib import Path

import pytest
from documented import PAGES, REPOSITORY, examples, output_of

from demo import testset
from predictor.answers import STATUS
from predictor.errors import ModelError

EXAMPLES = [(page, command, output) for page in PAGES for command, output in examples(page)]


@pytest.mark.parametrize(("page", "command", "output"), EXAMPLES, ids=[f"{p.name}: {c}" for p, c, _ in EXAMPLES])
def test_a_documented_command_prints_what_the_page_says(page, command, output):
    assert output_of(command) == output, "run `make docs`"


def test_the_readme_transcribes_a_speaker_that_training_never_heard_and_gets_it_right():
    shown = {
        command: output for _, command, output in EXAMPLES if command.startswith("python -m predictor transcribe demo/")
    }
    clips = {f"demo/testset/{clip.audio}": clip for clip in testset.read()}
    found = [
        (clips[command.split()[-1]], output.strip())
        for command, output in shown.items()
        if command.split()[-1] in clips
    ]
    assert {clip.language for clip, _ in found} == {"vi", "hi"}
    assert all(clip.unseen and clip.text == text for clip, text in found)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_status_and_series_of_the_documentation_exists():
    text = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    documented = {(int(status), code) for status, code in re.findall(r"^\| (\d{3}) \| ([A-Z_]+)", text, re.MULTILINE)}
    assert set(STATUS.values()) == documented
    assert STATUS[ModelError] == (500, "INTERNAL")
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    source = (REPOSITORY / "predictor" / "telemetry.py").read_text(encoding="utf-8")
    declared = re.findall(r'(Counter|Gauge|Histogram)\(\s*"(vani_asr_\w+)"', source)
    names = {f"{name}_total" if kind == "Counter" else name for kind, name in declared}
    assert names == set(re.findall(r"`(vani_asr_\w+)`", text))


def test_every_make_target_that_a_page_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [*PAGES, REPOSITORY / "CONTRIBUTING.md", *Path(REPOSITORY / "docs" / "decisions").glob("*.md")]
    named = {
        name
        for page in pages
        for name in re.findall(r"make ([a-z]+(?:-[a-z]+)*)\b(?=`|  |\n)", page.read_text("utf-8"))
    }
    assert named <= targets
