"""The two import services, as the library runs them: volume data on standard input, the answer on standard output.

In: the method's name, the volume's; QREXEC_REQUESTED_TARGET. Out: the bytes of the daemon's answer.
 May import: client.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cloison.client import Client
from cloison.client.framing import encode_request
from cloison.client.uploading import PORTION, send
from cloison.errors import CloisonError


def main(words: Sequence[str] | None = None) -> int:
    method, *rest = sys.argv[1:] if words is None else words
    volume = rest[0] if rest else ""
    try:
        request = encode_request(method, volume, os.environ.get("QREXEC_REQUESTED_TARGET", ""), b"")
        with Client(start_daemon=False).connect() as connection:
            connection.settimeout(None)
            send(connection, request, 0)
            while answer := connection.recv(PORTION):
                sys.stdout.buffer.write(answer)
        sys.stdout.buffer.flush()
    except (CloisonError, OSError) as error:
        print(f"{method}: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
