#!/usr/bin/env python3
"""Write the example mailbox: four MIME messages, one with a clean PDF, one with a hostile attachment.

In: make_pdf.py and harm.py beside this file. Out: an mbox on standard output, always the same bytes. May import: the
standard library and make_pdf.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from pathlib import Path

from make_pdf import quarterly_report

HERE = Path(__file__).parent
READER = "Robin Keller <robin@garden-museum.example>"


def message(number: int, sender: str, subject: str, text: str) -> EmailMessage:
    mail = EmailMessage(policy=SMTP.clone(linesep="\n"))
    mail["From"] = sender
    mail["To"] = READER
    mail["Date"] = format_datetime(datetime(2026, 10, 5, 8, 10 * number, tzinfo=UTC))
    mail["Subject"] = subject
    mail["Message-ID"] = f"<{number}@garden-museum.example>"
    mail.set_content(text)
    return mail


def messages() -> list[EmailMessage]:
    lunch = message(
        1,
        "Ada Brandt <ada@garden-museum.example>",
        "Lunch on Thursday?",
        "The new place by the river, at noon?\n\nAda\n",
    )
    report = message(
        2,
        "Accounts <accounts@garden-museum.example>",
        "Quarterly report",
        "The report is attached. Corrections before Friday, please.\n",
    )
    report.add_attachment(quarterly_report(), maintype="application", subtype="pdf", filename="report.pdf")
    invoice = message(
        3,
        '"Terracotta Trade" <billing@terracotta-trade.example>',
        "OVERDUE: invoice 2291, please open at once",
        "Your invoice 2291 is overdue. Open the attached document today to avoid costs.\n",
    )
    harm = (HERE / "harm.py").read_bytes()
    invoice.add_attachment(harm, maintype="application", subtype="octet-stream", filename="invoice-2291.pdf")
    letter = message(4, "Garden Weekly <letter@garden-weekly.example>", "Ten bulbs for autumn", "Plant them now.\n")
    letter.add_alternative("<html><body><h1>Ten bulbs</h1><p>Plant them now.</p></body></html>\n", subtype="html")
    return [lunch, report, invoice, letter]


def make_mailbox() -> bytes:
    box = bytearray()
    for number, mail in enumerate(messages(), start=1):
        for index, part in enumerate(p for p in mail.walk() if p.is_multipart()):
            part.set_boundary(f"part-{number}-{index}")
        body = bytes(mail).replace(b"\nFrom ", b"\n>From ")
        box += b"From sender@example Mon Oct  5 08:%02d:00 2026\n%b\n\n" % (10 * number, body.rstrip(b"\n"))
    return bytes(box)


if __name__ == "__main__":
    sys.stdout.buffer.write(make_mailbox())
