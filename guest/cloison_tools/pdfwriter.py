"""A PDF file of pictures and nothing else: one page each, RGB, Flate-compressed (ISO 32000-1, 7.3 to 7.8 and 8.9).

In: sizes and samples. Out: bytes. Nothing of an untrusted document can get in: only pixels are taken.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

POINTS_PER_INCH = 72
_OBJECTS_PER_PAGE = 4
_FIRST_PAGE = 3
"""Object 1 is the catalogue, 2 the list of pages; a page is itself, its content, its picture and that one's length."""


class PdfWriter:
    """``add_page`` for each page, then ``finish``."""

    def __init__(self, write: Callable[[bytes], object], resolution: int) -> None:
        self._write = write
        self._resolution = resolution
        self._position = 0
        self._offsets: dict[int, int] = {}
        self.pages = 0
        self._put(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n")

    @property
    def size_bytes(self) -> int:
        return self._position

    def add_page(self, width: int, height: int, samples: Iterable[bytes]) -> None:
        """A page that is a picture of ``width * height`` RGB pixels, in the size it has at the resolution."""
        page = _FIRST_PAGE + self.pages * _OBJECTS_PER_PAGE
        content, picture, length = page + 1, page + 2, page + 3
        across, up = (f"{side * POINTS_PER_INCH / self._resolution:.3f}" for side in (width, height))
        self._object(
            page,
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {across} {up}] /Contents {content} 0 R"
            f" /Resources << /XObject << /P {picture} 0 R >> >> >>",
        )
        drawing = f"q {across} 0 0 {up} 0 0 cm /P Do Q"
        self._object(content, f"<< /Length {len(drawing)} >>\nstream\n{drawing}\nendstream")
        self._begin(picture)
        self._put(
            f"<< /Type /XObject /Subtype /Image /Width {width} /Height {height} /ColorSpace /DeviceRGB"
            f" /BitsPerComponent 8 /Filter /FlateDecode /Length {length} 0 R >>\nstream\n".encode()
        )
        start = self._position
        packer = zlib.compressobj()
        for piece in samples:
            self._put(packer.compress(piece))
        self._put(packer.flush())
        packed_bytes = self._position - start
        self._put(b"\nendstream\nendobj\n")
        self._object(length, str(packed_bytes))
        self.pages += 1

    def finish(self) -> None:
        numbers = range(_FIRST_PAGE, _FIRST_PAGE + self.pages * _OBJECTS_PER_PAGE, _OBJECTS_PER_PAGE)
        kids = " ".join(f"{number} 0 R" for number in numbers)
        self._object(1, "<< /Type /Catalog /Pages 2 0 R >>")
        self._object(2, f"<< /Type /Pages /Count {self.pages} /Kids [{kids}] >>")
        table, count = self._position, len(self._offsets) + 1
        lines = [f"xref\n0 {count}\n0000000000 65535 f \n"]
        lines += [f"{offset:010d} 00000 n \n" for _, offset in sorted(self._offsets.items())]
        lines.append(f"trailer\n<< /Size {count} /Root 1 0 R >>\nstartxref\n{table}\n%%EOF\n")
        self._put("".join(lines).encode())

    def _begin(self, number: int) -> None:
        self._offsets[number] = self._position
        self._put(f"{number} 0 obj\n".encode())

    def _object(self, number: int, body: str) -> None:
        self._begin(number)
        self._put(f"{body}\nendobj\n".encode())

    def _put(self, data: bytes) -> None:
        if data:
            self._write(data)
            self._position += len(data)
