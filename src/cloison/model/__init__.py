"""Nouns: what a system consists of, as frozen values.

In: checked text. Out: values. May import: wire. No I/O, no clock, no randomness.
"""
