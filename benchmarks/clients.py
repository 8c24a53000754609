"""Callers that cost next to nothing, since they run on the cores of the server that they ask: bytes out, bytes in."""

import asyncio
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    retry_after_seconds: float
    body: bytes

    @property
    def text(self) -> str:
        return str(json.loads(self.body)["text"])


def post(path: str, body: bytes, content_type: str, **headers: str) -> bytes:
    """A whole HTTP request, made once and sent many times."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


def form(file: bytes, **fields: str) -> tuple[bytes, str]:
    """A multipart body with a file, and its content type."""
    boundary = "------------------------c0ffee"
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in fields.items()]
    parts.append(b'name="file"; filename="clip"\r\nContent-Type: application/octet-stream\r\n\r\n' + file)
    body = b"".join(f"--{boundary}\r\nContent-Disposition: form-data; ".encode() + part + b"\r\n" for part in parts)
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


class Connection:
    """One connection that is kept open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        body = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return Answer(int(head[0].split()[1]), float(headers.get("retry-after", 0)), body)

    def close(self) -> None:
        if self._streams:
            self._streams[1].close()
        self._streams = None
