"""One server with default settings for every test that changes nothing about it, and what it should say."""

import sys

import pytest
from serving import serving

from predictor.recognizer import Recognizer
from predictor.settings import EMBEDDED_BUNDLE


@pytest.fixture(scope="session")
def recognizer():
    return Recognizer.load(EMBEDDED_BUNDLE)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server") / "log") as running:
        yield running


@pytest.fixture(scope="session")
def client(server):
    with server.client() as open_client:
        yield open_client


@pytest.fixture(scope="session")
def kserve():
    """KServe's package, for its clients and messages. It reads the command line while it is imported."""
    argv, sys.argv = sys.argv, sys.argv[:1]
    try:
        import kserve
    finally:
        sys.argv = argv
    return kserve
