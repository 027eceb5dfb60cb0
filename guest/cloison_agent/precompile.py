"""Put compiled code beside the sources in the archive, made by the Python that will run it."""

from __future__ import annotations

import compileall
import importlib.util
import marshal
import os
import py_compile
import zipfile

_UNCHECKED_HASH = b"\x01\0\0\0" + bytes(8)
"""Header of compiled code that is taken as it is, without a look at the source (PEP 552)."""


def precompile(path: str) -> None:
    """Rewrite the archive: every module also as ``.pyc``, nothing compressed; and compile the tools beside it.

    Repeating it changes nothing.
    """
    with zipfile.ZipFile(path) as archive:
        sources = {name: archive.read(name) for name in archive.namelist() if name.endswith(".py")}
    with open(path, "rb") as file:
        shebang = file.readline()
    if not shebang.startswith(b"#!"):
        shebang = b"#!/usr/bin/python3 -IS\n"
    unfinished = f"{path}.new"
    with open(unfinished, "wb") as file:
        file.write(shebang)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, source in sorted(sources.items()):
                archive.writestr(zipfile.ZipInfo(name), source)
                code = marshal.dumps(compile(source, name, "exec"))
                archive.writestr(zipfile.ZipInfo(f"{name}c"), importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + code)
    os.chmod(unfinished, 0o755)
    os.replace(unfinished, path)
    tools = os.path.join(os.path.dirname(path), "tools")
    if os.path.isdir(tools):
        compileall.compile_dir(tools, quiet=1, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
