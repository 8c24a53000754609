"""The default run cannot leave this machine."""

import socket

import pytest
from pytest_socket import SocketConnectBlockedError


@pytest.mark.filterwarnings("ignore:A test tried to use")  # the guard warns before it raises
def test_a_connection_to_another_machine_is_blocked():
    with pytest.raises(SocketConnectBlockedError), socket.socket() as client:
        client.connect(("192.0.2.1", 80))  # an address reserved for documentation
