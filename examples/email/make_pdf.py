#!/usr/bin/env python3
"""Write a small, honest PDF: one page with a title, lines of text and a bar chart.

In: words and numbers. Out: the bytes of a PDF 1.4 file, always the same for the same input. May import: the standard
library.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

PAGE_WIDTH, PAGE_HEIGHT = 595, 842  # A4 in points
MARGIN = 64
BARS = ("0.20 0.40 0.70", "0.25 0.55 0.45", "0.85 0.55 0.20", "0.70 0.25 0.25")


def literal(text: str) -> str:
    """The text as a PDF string."""
    return "(" + text.replace("\\", "\\\\").replace("(", "\\(").replace(")", "\\)") + ")"


def draw_text(x: float, y: float, size: int, text: str, font: str = "F1") -> str:
    return f"BT /{font} {size} Tf {x:.0f} {y:.0f} Td {literal(text)} Tj ET"


def draw_chart(x: float, y: float, height: float, values: Sequence[tuple[str, int]]) -> list[str]:
    """Bars with their value above and their name below; the tallest is ``height`` points high."""
    tallest = max(value for _, value in values)
    commands = []
    for index, (name, value) in enumerate(values):
        left, bar = x + index * 110, height * value / tallest
        commands += [
            f"{BARS[index % len(BARS)]} rg {left:.0f} {y:.0f} 70 {bar:.0f} re f",
            "0 g",
            draw_text(left + 12, y + bar + 8, 11, f"{value}"),
            draw_text(left + 12, y - 18, 11, name),
        ]
    return commands


def make_pdf(title: str, lines: Sequence[str], values: Sequence[tuple[str, int]]) -> bytes:
    """One page as a complete PDF file."""
    commands = [
        "0.93 0.95 0.98 rg 0 762 595 80 re f",
        "0 g",
        draw_text(MARGIN, 792, 22, title, "F2"),
        *(draw_text(MARGIN, 724 - 18 * index, 12, line) for index, line in enumerate(lines)),
        *draw_chart(MARGIN, 220, 240, values),
    ]
    content = "\n".join(commands).encode("latin-1", "replace")
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R /F2 6 0 R >> >> >>" % (PAGE_WIDTH, PAGE_HEIGHT),
        b"<< /Length %d >>\nstream\n%b\nendstream" % (len(content), content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold >>",
    ]
    pdf, offsets = bytearray(b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"), []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(pdf))
        pdf += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    start = len(pdf)
    pdf += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    pdf += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    pdf += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, start)
    return bytes(pdf)


def quarterly_report() -> bytes:
    """The clean attachment of the example mailbox."""
    return make_pdf(
        "Quarterly report: visitors of the garden museum",
        [
            "Dear colleagues,",
            "",
            "the third quarter was the best since the opening: 4,812 visitors came,",
            "a fifth more than a year ago. The new glasshouse drew most of them.",
            "School classes stayed away in August, as every year.",
            "",
            "Please send corrections to accounts before Friday.",
        ],
        [("Q4", 3120), ("Q1", 2480), ("Q2", 3990), ("Q3", 4812)],
    )


if __name__ == "__main__":
    sys.stdout.buffer.write(quarterly_report())
