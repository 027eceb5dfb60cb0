"""The calling end of a leg of the wire protocol, without I/O. The other end is our own qube's agent: it is trusted."""

from struct import Struct

STDIN, STDOUT, STDERR, CREDIT, EXIT, ACCEPTED, REFUSED, RESET = 32, 33, 34, 35, 36, 18, 19, 39
_CALL = 17
SESSION = 1
MAX_PAYLOAD = 65536
WINDOW = 1024 * 1024
"""May be less than the protocol's, but not less than its CREDIT_STEP."""
_CREDIT_STEP = WINDOW // 2
HEADER = Struct("<III")
_CREDIT = Struct("<B3xI")
_EXIT = Struct("<i")


class Leg:
    def __init__(self) -> None:
        self.window = WINDOW
        """Bytes of stdin that may be sent now."""
        self._rest = b""
        self._consumed = [0, 0, 0]

    def call(self, target: str, service: str, source: str) -> bytes:
        """Ask for the call. The names hold nothing that JSON would have to escape."""
        fields = (("target", target), ("service", service), ("source", source))
        pairs = ",".join(f'"{key}":"{value}"' for key, value in fields if value)
        return _frame(_CALL, f"{{{pairs}}}".encode())

    def stdin(self, data: "bytes | memoryview") -> bytes:
        """One frame of stdin; empty = its end."""
        self.window -= len(data)
        return _frame(STDIN, data)

    def consumed(self, stream: int, size_bytes: int) -> bytes:
        """Count what was written out; returns the credit to send now, usually nothing."""
        self._consumed[stream] += size_bytes
        if self._consumed[stream] < _CREDIT_STEP:
            return b""
        credit, self._consumed[stream] = self._consumed[stream], 0
        return _frame(CREDIT, _CREDIT.pack(stream, credit))

    def receive(self, data: bytes) -> list[tuple[int, bytes]]:
        """Kind and payload of each whole frame; credit is counted here and not shown."""
        data = self._rest + data if self._rest else data
        position, end, events = 0, len(data), []
        while end - position >= HEADER.size:
            length, _, kind = HEADER.unpack_from(data, position)
            start = position + HEADER.size
            if start + length > end:
                break
            if kind == CREDIT:
                self.window += _CREDIT.unpack_from(data, start)[1]
            else:
                events.append((kind, data[start : start + length]))
            position = start + length
        self._rest = data[position:]
        return events


def exit_code(payload: bytes) -> int:
    """What an EXIT frame says, as the status of a process."""
    code: int = _EXIT.unpack(payload)[0]
    return code if 0 <= code <= 255 else 255


def _frame(kind: int, payload: "bytes | memoryview") -> bytes:
    return HEADER.pack(len(payload), SESSION, kind) + payload
