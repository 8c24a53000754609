"""Servers that do everything but recognise: what is left is what serving costs. Run by overhead.py.

python benchmarks/noop.py vani      Vani with a recogniser that hears nothing, set up by VANI_ASR_* as always
python benchmarks/noop.py bare      a bare FastAPI route that reads the body and answers
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from predictor import bundle, logs, settings
from predictor.audio import Pcm, Waveform
from predictor.bundle import Bundle
from predictor.engine import BatchRule, Emission
from predictor.features import Batch
from predictor.segments import Window
from predictor.transcript import Word

SILENCE = np.zeros(160_000, np.float32)
FRAMES = np.zeros((1, 1), np.float32)
SAID = ("tôi", "đi", "chợ", "mua", "cá")
EMISSIONS = [Emission(np.zeros((1, 1), np.float32))]
WORDS = [Word(text, number * 0.5, number * 0.5 + 0.4, 0.9) for number, text in enumerate(SAID)]


@dataclass(frozen=True)
class Deaf:
    """The engine: every batch of one row comes back at once."""

    rule: BatchRule

    def infer(self, _batch: Batch) -> list[Emission]:
        return EMISSIONS


@dataclass(frozen=True)
class Mute:
    """A Recognizer's methods without the work; whatever it is sent has 10 s and says WORDS."""

    bundle: Bundle
    engine: Deaf
    max_audio_seconds: float

    @classmethod
    def load(cls, directory: Path, max_audio_seconds: float, rule: BatchRule, _engine: str) -> "Mute":
        return cls(bundle.read(directory), Deaf(rule), max_audio_seconds)

    def check(self, _language: str | None, _decoding: str) -> None:
        pass

    def decode(self, _data: bytes | Pcm) -> Waveform:
        return Waveform(SILENCE)

    def split(self, waveform: Waveform) -> list[Window]:
        return [Window(0.0, waveform.samples)]

    def extract(self, _window: Window) -> NDArray[np.float32]:
        return FRAMES

    def search(
        self, _emission: Emission, _window: Window, _language: str | None, _hotwords: Sequence[str], _decoding: str
    ) -> tuple[list[Word], str | None]:
        return WORDS, "vi"


def bare() -> None:
    import uvicorn
    from fastapi import FastAPI, Request, UploadFile

    app = FastAPI()

    @app.post("/raw")
    async def raw(request: Request) -> dict[str, int]:
        return {"bytes": len(await request.body())}

    @app.post("/form")
    async def form(file: UploadFile) -> dict[str, int]:
        return {"bytes": len(await file.read())}

    port = int(os.environ["VANI_ASR_HTTP_PORT"])
    uvicorn.run(app, port=port, loop=os.environ.get("BARE_LOOP", "asyncio"), log_level="warning", access_log=False)


def vani() -> None:
    configuration = settings.load()
    logs.configure(configuration.log_format, configuration.log_level)
    sys.argv = sys.argv[:1]
    from predictor.server import serve

    serve(configuration, Mute.load)


if __name__ == "__main__":
    {"bare": bare, "vani": vani}[sys.argv[1]]()
