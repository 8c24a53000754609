"""How the process logs: one handler, text for people or JSON for collectors, and KServe's chatter kept out."""

import json
import logging
import sys
import warnings
from datetime import UTC, datetime


class _Json(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure(log_format: str, level: str) -> None:
    """Log to standard error. KServe finds its logger in use and leaves it alone."""
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(_Json() if log_format == "json" else text)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    warnings.filterwarnings("ignore", "ORJSONResponse is deprecated")  # KServe's, at every route
    kserve = logging.getLogger("kserve")
    kserve.handlers = [logging.NullHandler()]  # propagates to the handler above; not empty, so not configured again
    # It logs the traceback of every refused request at ERROR; the edge writes the line that matters.
    kserve.addFilter(lambda record: record.msg != "Exception:")
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a caller's bad form is a refusal, and no warning
    for chatty in ("kserve", "kserve.trace", "uvicorn", "uvicorn.error", "uvicorn.access", "httpx"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLevelName(level)))
