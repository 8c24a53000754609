"""What is taken for granted of a model, and whether it is so."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.errors import Permanent


@dataclass(frozen=True, slots=True)
class Finding:
    """One assumption. What is not `needed` may differ and be served."""

    name: str
    expected: str
    found: str
    ok: bool
    needed: bool = True

    def __str__(self) -> str:
        return f"{self.name}: {self.expected} is expected, and found is {self.found}"


def refuse(findings: Iterable[Finding]) -> list[Finding]:
    """Those that differ and may; raises Permanent where something needed is not so."""
    wrong = [finding for finding in findings if not finding.ok]
    if any(finding.needed for finding in wrong):
        raise Permanent("; ".join(map(str, wrong)))
    return wrong
