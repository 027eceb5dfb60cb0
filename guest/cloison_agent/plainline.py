"""A line of shell that needs no shell: its words can be executed as they are.

A shell costs more than the program it starts when code is emulated. So a line which every shell would take for one
plain command is not given to one (`make` does the same).
"""

from __future__ import annotations

import os
import re

SHELLS = frozenset({"sh", "bash", "dash"})
"""Those whose words we know."""
_WORD = r"(?:[A-Za-z0-9_@%+:,./-]|'[^'\n]*')+"
_LINE = re.compile(rf" *(?!-){_WORD}(?: +(?:[A-Za-z0-9_@%+:,./=-]|'[^'\n]*')+)* *", re.ASCII)
_OWN = """
    . : [ alias bg bind break builtin caller case cd command compgen complete compopt continue coproc declare dirs
    disown do done echo elif else enable esac eval exec exit export fc fg fi for function getopts hash help history if
    in jobs kill let local logout mapfile popd printf pushd pwd read readarray readonly return select set shift shopt
    source suspend test then time times trap type typeset ulimit umask unalias unset until wait while
"""
_OWN_WORDS = frozenset(_OWN.split())
"""What shells do themselves, or differently from the program of that name. (``true`` and ``false`` are the same.)"""


def find_words(line: str, shell: str) -> list[str] | None:
    """The command's words, or None if the shell must see the line."""
    if os.path.basename(shell) not in SHELLS or not _LINE.fullmatch(line):
        return None
    words = [word.replace("'", "") for word in re.findall(r"(?:[^ ']|'[^']*')+", line)]
    return None if words[0] in _OWN_WORDS or not words[0] else words
