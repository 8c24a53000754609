"""The model that MLflow runs: rows of recordings in, rows of transcripts out, through the Recognizer that serves.

MLflow copies this file into the model directory and executes it when a model is loaded ("models from code"), so that
nothing is pickled. The `predictor` package lies beside it there, under code/; this file imports nothing else of ours.
`pipelines.mlflow_export` writes such a directory.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from predictor.errors import BadRequest, InferenceFailed, InvalidBundle, ModelError, PredictorError
from predictor.protocol.fields import as_decoding, as_language, from_base64
from predictor.recognizer import Recognizer
from predictor.search import Decoding
from predictor.settings import available_cores

COLUMNS = ("transcription", "lang", "decoding", "duration_seconds", "words", "bundle_digest")

_log = logging.getLogger("vani.mlflow")


@dataclass(frozen=True, slots=True)
class Row:
    """One recording to transcribe; `asked` is the caller's own word for the decoding."""

    data: bytes
    language: str | None
    decoding: Decoding
    asked: str


class SpeechModel(PythonModel):
    """A bundle behind MLflow's interface. `predict` may be called from several threads, as MLflow's server does."""

    def load_context(self, context: PythonModelContext) -> None:
        """Verify and load the bundle, once. Raises InvalidBundle where it is not the one that was exported."""
        self._recognizer = Recognizer.load(Path(context.artifacts["bundle"]))
        found, exported = self._recognizer.bundle.digest, context.model_config["bundle_digest"]
        if found != exported:
            raise InvalidBundle([f"its digest is {found}, and {exported} was exported"])
        # Of all requests together: a window needs a core of its own, and more threads than cores only wait.
        self._pool = ThreadPoolExecutor(available_cores(), "transcribe")

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row for each row, with COLUMNS, in order; `words` has a list of what predictor.transcript.Word has.

        Raises MlflowException: INVALID_PARAMETER_VALUE, which is HTTP 400, for what a client can send, with the first
        row that is wrong and what is; INTERNAL_ERROR, which is 500, for all else.
        """
        del context, params  # MLflow passes them; all that we need is loaded
        rows = [self._read(number, cells) for number, cells in enumerate(model_input.to_dict(orient="records"))]
        answers = [self._pool.submit(self._answer, number, row) for number, row in enumerate(rows)]
        try:
            return pd.DataFrame([answer.result() for answer in answers], columns=list(COLUMNS))
        finally:
            for answer in answers:  # after a row that is wrong, the others need not be done
                answer.cancel()

    def _read(self, number: int, cells: dict[Any, Any]) -> Row:
        """The fields of a row, checked as far as that needs no audio."""
        try:
            audio, language, decoding = (_text(cells.get(name), name) for name in ("audio_base64", "lang", "decoding"))
            data = from_base64(audio, "audio_base64")
            row = Row(data, as_language(language), as_decoding(decoding), decoding or "ctc")
            self._recognizer.check(row.language, row.decoding)
        except PredictorError as error:
            raise _refused(number, error) from error
        return row

    def _answer(self, number: int, row: Row) -> dict[str, object]:
        try:
            transcript = self._recognizer.transcribe(row.data, row.language, decoding=row.decoding)
        except PredictorError as error:
            raise _refused(number, error) from error
        except Exception as error:  # MLflow would answer 400, with our stack
            _log.exception("row %d", number)
            raise _refused(number, InferenceFailed()) from error
        words = [asdict(word) for word in transcript.words]
        digest = self._recognizer.bundle.digest
        values = (transcript.text, transcript.language, row.asked, transcript.duration_seconds, words, digest)
        return dict(zip(COLUMNS, values, strict=True))


def _text(cell: object, column: str) -> str | None:
    """What a cell says; None where it is empty, which is a NaN where pandas had to fill it in."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return None
    if not isinstance(cell, str):
        raise BadRequest(f"{column} must be text")
    return cell


def _refused(number: int, error: PredictorError) -> MlflowException:
    code = INTERNAL_ERROR if isinstance(error, ModelError) else INVALID_PARAMETER_VALUE
    return MlflowException(f"row {number}: {error}", error_code=code)


set_model(SpeechModel())  # what MLflow looks for when it has executed this file
