"""What a step of a release refuses, and whether trying again can help.

PipelineError
├── Permanent   the same input will be refused again
└── Temporary   something was not there; try again with patience
"""


class PipelineError(Exception):
    """The message is a sentence for people."""


class Permanent(PipelineError):
    """Trying again will not help."""


class Temporary(PipelineError):
    """Trying again may help."""
