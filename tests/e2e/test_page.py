"""The page at `/`, as people use it: the system's Chromium in front of a real server."""

import json
import shutil
import subprocess
import sys
from contextlib import contextmanager

import asking
import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect, sync_playwright
from serving import REPOSITORY, serving

from predictor import page as assets
from predictor import transcript

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",  # which root needs, as whom containers run
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",  # answers the question for the microphone
]
PAUSE_SECONDS = 1.5  # after each time that the microphone hears the clip
LIMIT_MS = 20_000

# What a page's scripts were given of the microphone, so that a test can see it closed.
WATCH_MICROPHONES = """
    window.tracks = [];
    const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (wanted) => {
        const stream = await ask(wanted);
        window.tracks.push(...stream.getTracks());
        return stream;
    };
"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One whose microphone hears the Vietnamese clip over and over."""
    microphone = tmp_path_factory.mktemp("microphone") / "clip.wav"
    silence = np.zeros(int(PAUSE_SECONDS * asking.RATE_HZ), np.int16)
    microphone.write_bytes(asking.wav(np.concatenate([asking.pcm("vi"), silence])))
    expect.set_options(timeout=LIMIT_MS)
    with sync_playwright() as playwright:
        arguments = [*FLAGS, f"--use-file-for-fake-audio-capture={microphone}"]
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@contextmanager
def visiting(browser, address: str):
    """The page, just opened; afterwards nothing has gone elsewhere, and neither script nor browser has complained."""
    complaints, asked, refused = [], [], []
    context = browser.new_context(permissions=["microphone"])
    context.add_init_script(WATCH_MICROPHONES)
    page = context.new_page()
    page.set_default_timeout(LIMIT_MS)
    page.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.on("websocket", lambda socket: asked.append(socket.url.replace("ws:", "http:")))
    page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
    page.goto(address)
    yield page
    context.close()
    assert asked
    assert [url for url in asked if not url.removeprefix("blob:").startswith(f"{address}/")] == []
    assert [url for url in refused if url == f"{address}/" or "/page/" in url] == []
    # The browser's own line for a refusal that the server meant; a violation of CSP has other words.
    assert [text for text in complaints if not text.startswith("Failed to load resource: the server responded")] == []


@pytest.fixture
def page(browser, server):
    with visiting(browser, server.address) as opened:
        expect(opened.locator("#version")).to_have_text("version 1")
        yield opened


def choose(page: Page, content: bytes, name: str = "clip.opus") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "application/octet-stream", "buffer": content})


def shown(page: Page, name: str) -> str:
    """The text of the transcript, once it is that of the recording of this name."""
    expect(page.locator("#facts")).to_contain_text(name)
    return page.locator("#transcript").inner_text()


def share_heard(text: str) -> float:
    """How much of the clip is in a text: the microphone's way is lossy, and a word may come out as another."""
    words = asking.CLIPS["vi"].text.split()
    return sum(word in text.split() for word in words) / len(words)


def microphones_open(page: Page) -> int:
    return page.evaluate("window.tracks.filter((track) => track.readyState === 'live').length")


@pytest.mark.parametrize(("language", "name"), [("vi", "Tiếng Việt"), ("hi", "हिन्दी")])
def test_a_chosen_file_gives_the_recognizers_words(page, recognizer, client, language, name):
    choose(page, asking.audio(language))
    assert shown(page, "clip.opus") == recognizer.transcribe(asking.audio(language)).text
    facts = page.locator("#facts").inner_text()
    digest = client.get("/models").json()[0]["bundle_digest"]
    assert name in facts
    assert f"{asking.MODEL}, version 1" in facts
    assert digest[:15] in facts
    expect(page.locator("#play")).to_be_focused()


def test_the_chosen_language_and_the_words_to_expect_count(page, recognizer):
    clip = asking.audio("vi")
    unhinted, hindi = recognizer.transcribe(clip).text, recognizer.transcribe(clip, "hi").text
    hinted = recognizer.transcribe(clip, None, ["cũng rửa bác", "rửa bác"]).text
    assert len({unhinted, hindi, hinted}) == 3
    page.fill("#hotwords", "cũng rửa bác, rửa bác")
    choose(page, clip)
    assert shown(page, "clip.opus") == hinted
    page.fill("#hotwords", "")
    page.select_option("#language", "hi")
    choose(page, clip, "again.opus")
    assert shown(page, "again.opus") == hindi


def test_a_recording_is_transcribed_and_the_microphone_closed(page):
    page.get_by_role("button", name="Record").click()
    expect(page.locator("#recorded")).to_have_text("0:05")
    assert microphones_open(page) == 1
    page.get_by_role("button", name="Stop and transcribe").click()
    assert share_heard(shown(page, ".webm")) >= 0.75
    assert microphones_open(page) == 0
    page.locator(".word").nth(3).click()  # a recorder's file says neither its length nor where its parts are
    expect(page.locator(".word").nth(4)).to_have_class("word spoken")


def test_dictation_shows_words_while_they_are_spoken(page):
    page.get_by_role("button", name="Dictate live").click()
    expect(page.locator("#partial")).not_to_be_empty()
    expect(page.locator("#final")).not_to_be_empty()
    page.get_by_role("button", name="Stop", exact=True).click()
    text = shown(page, ".wav")
    assert text.startswith(page.locator("#final").text_content().split()[0])
    assert share_heard(text) >= 0.75
    assert "version 1" in page.locator("#facts").inner_text()
    assert microphones_open(page) == 0


@pytest.mark.parametrize("name", ["Record", "Dictate live"])
def test_what_is_discarded_leaves_nothing_behind(page, name):
    page.get_by_role("button", name=name).click()
    page.get_by_role("button", name="Discard").click()
    expect(page.locator("#record")).to_be_visible()
    expect(page.locator("#status")).to_have_text("Discarded.")
    assert microphones_open(page) == 0
    expect(page.locator("#problem")).to_be_hidden()
    choose(page, asking.audio("vi"))
    assert shown(page, "clip.opus")


def test_a_microphone_is_asked_for_once(page):
    page.evaluate("for (let i = 0; i < 3; i += 1) { document.getElementById('record').click(); }")
    expect(page.locator("#stop")).to_be_visible()
    assert microphones_open(page) == 1


# Every word that lights up: looking now and then would miss the short ones.
WATCH = """() => {
  const lit = [];
  const note = ({ target }) => target.classList.contains("spoken") && lit.push(target.textContent);
  new MutationObserver((changes) => changes.forEach(note))
    .observe(document.querySelector("#transcript"), { subtree: true, attributes: true, attributeFilter: ["class"] });
  return lit;
}"""


def test_the_spoken_word_is_highlighted_and_a_click_goes_to_a_word(page):
    choose(page, asking.audio("vi"))
    said = shown(page, "clip.opus").split()
    words, audio = page.locator(".word"), page.locator("#audio")
    lit = page.evaluate_handle(WATCH)
    words.nth(3).click()
    expect(page.get_by_role("button", name="Pause", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Play", exact=True)).to_be_visible()  # it has ended
    heard = lit.json_value()
    rest = iter(said[3:])
    assert heard[0] == said[3]
    assert all(word in rest for word in heard), "each in its turn"
    assert len(heard) > len(said[3:]) / 2, "a busy machine draws fewer frames"
    page.select_option("#speed", "0.5")
    words.nth(0).click()
    expect(page.locator(".word.spoken")).to_have_count(1)
    assert audio.evaluate("(audio) => audio.currentTime") < 1


def test_a_request_that_takes_too_long_can_be_cancelled(page):
    page.route("**/v1/audio/transcriptions", lambda route: None)  # never sent on
    choose(page, asking.audio("vi"))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#status")).to_have_text("Cancelled.")
    expect(page.locator("#choose")).to_be_focused()
    page.unroute("**/v1/audio/transcriptions")
    choose(page, asking.audio("vi"))
    assert shown(page, "clip.opus")


def test_a_busy_server_is_asked_again(page):
    busy = iter([503, 429])

    def answer(route):
        status = next(busy, None)
        if status is None:
            route.continue_()
        else:
            route.fulfill(status=status, headers={"Retry-After": "1"}, body='{"error": {"message": "later"}}')

    page.route("**/v1/audio/transcriptions", answer)
    choose(page, asking.audio("vi"))
    expect(page.locator("#phase")).to_have_text("The server is busy")
    expect(page.locator("#phase")).to_have_text("Too much for this minute")
    assert shown(page, "clip.opus")


def test_downloads_are_what_the_server_would_write(page, recognizer):
    expected = recognizer.transcribe(asking.audio("vi"))
    choose(page, asking.audio("vi"))
    shown(page, "clip.opus")
    files = {}
    for kind in ("srt", "vtt", "txt", "json"):
        with page.expect_download() as download:
            page.get_by_role("button", name=f".{kind}").click()
        assert download.value.suggested_filename == f"clip.{kind}"
        files[kind] = download.value.path().read_text(encoding="utf-8")
    assert files["srt"] == transcript.to_srt(expected)
    assert files["vtt"] == transcript.to_vtt(expected)
    assert files["txt"] == f"{expected.text}\n"
    assert [word["word"] for word in json.loads(files["json"])["words"]] == [word.text for word in expected.words]


def test_a_text_file_shows_what_the_server_says_of_it(page, client):
    content = b"no audio, just some text\n" * 9
    answer = client.post("/v1/audio/transcriptions", files={"file": content})
    choose(page, content, "notes.txt")
    alert = page.get_by_role("alert")
    said = answer.json()["error"]["message"]
    expect(alert).to_contain_text(said[0].upper() + said[1:])
    expect(alert).to_contain_text("Request ")
    expect(page.locator("#choose")).to_be_focused()
    choose(page, asking.audio("vi"))
    assert shown(page, "clip.opus")
    expect(page.locator("#problem")).to_be_hidden()


def test_the_keyboard_alone_leads_to_a_transcript(page, tmp_path):
    clip = tmp_path / "clip.opus"
    clip.write_bytes(asking.audio("vi"))

    def tab_to(selector: str) -> None:
        for _ in range(8):
            page.keyboard.press("Tab")
            if page.locator(selector).evaluate("(element) => element === document.activeElement"):
                return
        pytest.fail(f"the tab key does not reach {selector}")

    page.on("filechooser", lambda chooser: chooser.set_files(clip))  # early: the browser must know of it by then
    tab_to("#choose")
    page.keyboard.press("Enter")
    shown(page, "clip.opus")
    expect(page.locator("#play")).to_be_focused()
    tab_to(".word:first-of-type")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#play")).to_have_accessible_name("Pause")
    expect(page.locator(".word").nth(3)).to_have_class("word spoken")
    page.keyboard.press("Space")
    expect(page.locator("#play")).to_have_accessible_name("Play")
    tab_to("#copy")


def test_where_keys_are_needed_the_page_asks_for_one(browser, tmp_path):
    command = [sys.executable, "-m", "predictor", "keys", "add", "person", "--file", str(tmp_path / "keys")]
    key = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout.strip()
    with (
        serving(tmp_path / "log", api_keys_file=tmp_path / "keys") as guarded,
        visiting(browser, guarded.address) as page,
    ):
        field, alert = page.get_by_label("API key"), page.get_by_role("alert")
        expect(field).to_be_focused()
        expect(alert).to_contain_text("Enter yours above.")
        for wrong in ("vani_wrong", "vani_wrong_again"):
            field.fill(wrong)
            field.press("Enter")
            expect(alert).to_contain_text("The API key is not valid.")
        field.fill(key)
        field.press("Enter")
        expect(page.locator("#version")).to_have_text("version 1")
        expect(field).to_be_hidden()
        expect(alert).to_be_hidden()
        choose(page, asking.audio("vi"))
        assert shown(page, "clip.opus")
        page.get_by_role("button", name="Dictate live").click()
        expect(page.locator("#partial")).not_to_be_empty()
        page.get_by_role("button", name="Discard").click()
        page.evaluate("sessionStorage.clear()")  # as when the key is withdrawn
        page.get_by_role("button", name="Dictate live").click()
        expect(field).to_be_focused()
        assert microphones_open(page) == 0


@pytest.mark.parametrize("path", assets.ASSETS)
def test_an_asset_that_is_known_is_not_sent_again(server, path):
    headers = {"Accept": "text/html"}
    first = httpx.get(f"{server.address}{path}", headers=headers)
    assert first.content == assets.ASSETS[path].content
    assert first.headers["content-security-policy"] == assets.CSP
    again = httpx.get(f"{server.address}{path}", headers=headers | {"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
