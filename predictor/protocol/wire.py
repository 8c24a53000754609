"""The audio of a gRPC message, without copies: its raw tensors are views of it, and the rest is read by protobuf.

Protobuf copies every byte string twice on its way into Python, which for audio costs more than the rest of the call.
The format: https://protobuf.dev/programming-guides/encoding/
"""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT = 10  # bytes, which hold 64 bits


def take_out(message: bytes, number: int) -> tuple[bytes, list[memoryview]]:
    """A message without the byte strings of one field at its top, and these, in their order.

    What is not well formed comes back whole: refusing it is for protobuf, which says what is wrong with it.
    """
    view, offset, kept_from = memoryview(message), 0, 0
    kept: list[memoryview] = []
    taken: list[memoryview] = []
    try:
        while offset < len(message):
            start = offset
            tag, offset = _varint(message, offset)
            kind = tag & 7
            if kind == _BYTES:
                size, offset = _varint(message, offset)
                if tag >> 3 == number:
                    kept.append(view[kept_from:start])
                    taken.append(view[offset : offset + size])
                    kept_from = offset + size
                offset += size
            elif kind == _VARINT:
                _, offset = _varint(message, offset)
            elif kind in (_FIXED64, _FIXED32):
                offset += 8 if kind == _FIXED64 else 4
            else:  # a group, which nobody has written for fifteen years
                return message, []
    except IndexError:
        return message, []
    if offset != len(message) or not taken:
        return message, []
    return b"".join((*kept, view[kept_from:])), taken


def _varint(message: bytes, offset: int) -> tuple[int, int]:
    """A number, and where the next thing begins; raises IndexError where it does not end."""
    value = 0
    for place in range(_MAX_VARINT):
        byte = message[offset + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:  # noqa: PLR2004  (the last one's highest bit is not set)
            return value, offset + place + 1
    raise IndexError(offset)
