"""The record of every decision and change: a chain of lines that cannot be altered unseen.

In: records of the broker and of the daemon's wiring. Out: segments of lines on disk, and who reads and checks them. May
import: model, errors, ``qrexec.ports``; `cryptography`. Pure: ``record``, ``chain``, ``sealing``, ``verify``. On disk:
``disk`` (every step by which a file changes), ``signing``, ``recordkeys``, ``segments``, ``store`` (the writer).

See docs/audit.md for the format and for what it does not promise.
"""
