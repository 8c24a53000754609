"""The page at `/`: what a person without a client tries the model with. Plain files, served as they are.

    index.html     what there is to see                 page.css       how it looks, light and dark
    page.js        what happens when                    view.js        its states, and what went wrong
    api.js         the server's routes                  result.js      a transcript, its facts and downloads
    microphone.js  recording, and PCM for dictation     worklet.js     the part of that on the audio thread
    player.js      playing, and following the words     subtitles.js   words to paragraphs, SRT and WebVTT
    languages.js   the names of languages

There is no framework and no build step, and nothing comes from another origin: the page works where there is no
internet, and CSP makes browsers refuse the rest. All addresses in it are relative, so a path prefix of a proxy is fine.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

CSP = "; ".join(  # noqa: FLY002  (one directive a line)
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "media-src blob:",  # the caller's own recording, played from memory
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text of a transcript or an error can become markup
    )
)

_DIRECTORY = Path(__file__).parent
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Asset(NamedTuple):
    """One file: its bytes, its media type, and a quoted strong ETag of its content."""

    content: bytes
    media_type: str
    etag: str


def _read(file: Path) -> Asset:
    content = file.read_bytes()
    return Asset(content, _MEDIA_TYPES[file.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')


# The file of each route, read once: a few kilobytes that every pod has at hand from its start.
ASSETS: Mapping[str, Asset] = MappingProxyType(
    {"/": _read(_DIRECTORY / "index.html")}
    | {
        f"/page/{file.name}": _read(file)
        for file in sorted(_DIRECTORY.iterdir())
        if file.suffix in _MEDIA_TYPES and file.name != "index.html"
    }
)
