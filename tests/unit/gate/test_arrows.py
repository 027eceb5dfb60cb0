"""Which room may import which: policy can decide but not act, the engine can act but not decide."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[3]
OURS = ("cloison.layout", "cloison.errors", "cloison.__version__")
"""What every room may import; the bare ``import cloison`` (to know where the package lies) brings no code."""
DRIVER_INTERFACES = (
    "cloison.drivers.block.base",
    "cloison.drivers.hypervisor.base",
    "cloison.drivers.network.base",
    "cloison.drivers.storage.base",
    "cloison.drivers.state.base",
)
HOST_PROBES = (
    *DRIVER_INTERFACES,
    "cloison.drivers.hypervisor.probe",
    "cloison.drivers.hypervisor.jail",
    "cloison.drivers.pci.host",
)
ARROWS: dict[str, tuple[str, ...]] = {
    "wire": (),
    "model": ("cloison.wire",),
    "policy": ("cloison.wire", "cloison.model"),
    "drivers": ("cloison.wire", "cloison.model"),
    "templates": ("cloison.model", "cloison.guest_tree", *DRIVER_INTERFACES),
    "engine": ("cloison.wire", "cloison.model", *DRIVER_INTERFACES),
    "qrexec": ("cloison.wire", "cloison.model", "cloison.policy", "cloison.engine"),
    "admin": ("cloison.wire", "cloison.model", "cloison.policy", "cloison.engine"),
    "client": ("cloison.wire", "cloison.model.names"),
    "cli": ("cloison.wire", "cloison.model.names", "cloison.client", "cloison.doctor"),
    "doctor": ("cloison.policy", "cloison.templates", "cloison.client.spawn", *HOST_PROBES),
    "daemon": ("cloison",),
}
EXCEPTIONS = {
    "cli/daemon.py": ("cloison.daemon",),
    "cli/audit.py": ("cloison.qrexec.audit",),
    "cli/pci.py": ("cloison.drivers.pci", "cloison.model.network"),
    "cli/policy.py": ("cloison.policy",),
    "cli/limits.py": ("cloison.policy",),
    "doctor/audit.py": ("cloison.qrexec.audit",),
    "templates/importer.py": ("cloison.drivers.storage.qcow2format",),
}
STANDARD_LIBRARY_ONLY = ("wire", "model", "policy")


def imported_modules(file: Path, package: tuple[str, ...]) -> Iterator[str]:
    """Every module that the file names in an import, written out in full (``from a import b`` is ``a.b``)."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join((*package[: len(package) - node.level + 1], *filter(None, [node.module])))
            yield from (f"{base if node.level else node.module}.{alias.name}" for alias in node.names)


def is_below(module: str, roots: tuple[str, ...]) -> bool:
    return any(module == root or module.startswith(root + ".") for root in roots)


def wrong_arrows(top: Path) -> list[str]:
    """One line per forbidden import under src/cloison and guest."""
    wrong = []
    for file in sorted((top / "src/cloison").glob("*/**/*.py")):
        inside = file.relative_to(top / "src/cloison")
        room = inside.parts[0]
        allowed = (*ARROWS.get(room, ()), *OURS, f"cloison.{room}", *EXCEPTIONS.get(str(inside), ()))
        for module in imported_modules(file, ("cloison", *inside.parts[:-1])):
            foreign = module.split(".")[0] not in sys.stdlib_module_names | {"cloison", "__future__"}
            if module.startswith("cloison.") and not is_below(module, allowed):
                wrong.append(f"src/cloison/{inside} imports {module}: {room} may not")
            elif foreign and room in STANDARD_LIBRARY_ONLY:
                wrong.append(f"src/cloison/{inside} imports {module}: {room} has the standard library only")
    own = {path.stem for path in (top / "guest").rglob("*") if path.suffix == ".py" or path.is_dir()}
    for file in sorted((top / "guest").rglob("*.py")):
        for module in imported_modules(file, file.relative_to(top / "guest").parts[:-1]):
            root = module.split(".")[0]
            if not is_below(module, ("cloison.wire",)) and root not in sys.stdlib_module_names | own:
                wrong.append(
                    f"{file.relative_to(top)} imports {module}: the guest has the standard library and wire only"
                )
    return wrong


def test_rooms_import_only_what_their_arrows_allow() -> None:
    assert wrong_arrows(TOP) == []


def test_every_room_of_the_tree_has_its_arrows() -> None:
    rooms = {path.name for path in (TOP / "src/cloison").iterdir() if (path / "__init__.py").exists()}
    assert rooms <= ARROWS.keys()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("src/cloison/policy/x.py", "from cloison.engine import start"),
        ("src/cloison/policy/x.py", "import rich"),
        ("src/cloison/wire/x.py", "from cloison.model.names import QubeName"),
        ("src/cloison/engine/x.py", "from cloison.drivers.hypervisor.qemu import Qemu"),
        ("src/cloison/engine/x.py", "def late():\n    import cloison.policy.evaluate"),
        ("src/cloison/engine/x.py", "from ..policy import evaluate"),
        ("src/cloison/client/x.py", "from cloison.model.qube import Qube"),
        ("src/cloison/cli/x.py", "from cloison import daemon"),
        ("guest/x.py", "import cloison.model.names"),
        ("guest/x.py", "import click"),
    ],
)
def test_a_planted_wrong_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(line + "\n")
    assert len(wrong_arrows(tmp_path)) == 1


def test_imports_along_the_arrows_pass(tmp_path: Path) -> None:
    (tmp_path / "src/cloison/engine").mkdir(parents=True)
    text = "import os\nfrom cloison import errors\nfrom cloison.drivers.storage.base import Pool\nfrom .runs import x\n"
    (tmp_path / "src/cloison/engine/x.py").write_text(text)
    assert wrong_arrows(tmp_path) == []
