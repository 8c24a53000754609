"""The commands in the documentation, and what they print.

A fenced `console` block whose first line starts with "$ " is an example: that command, and below it its exact output.
`python tests/support/documented.py` runs them all and writes what they print (`make docs`); tests/test_docs.py checks
that nothing would change. Other console blocks are for reading.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGES = (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "demo" / "README.md")
_EXAMPLE = re.compile(r"(?<=```console\n)\$ (?P<command>.+)\n(?P<output>(?:(?!```).*\n)*)(?=```)")


def output_of(command: str) -> str:
    """What the command prints in a terminal of 100 columns, with this environment's `python`."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "COLUMNS": "100", "PYTHONUTF8": "1"}
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stdout


def examples(page: Path) -> list[tuple[str, str]]:
    return [(match["command"], match["output"]) for match in _EXAMPLE.finditer(page.read_text(encoding="utf-8"))]


def _rewrite(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    page.write_text(_EXAMPLE.sub(lambda m: f"$ {m['command']}\n{output_of(m['command'])}", text), encoding="utf-8")


if __name__ == "__main__":
    for documented in PAGES:
        _rewrite(documented)
