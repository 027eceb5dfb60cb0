"""qvm-open-in-vm, qvm-open-in-dvm and qvm-run-vm: have another qube open or run something."""

import posix

from cloison_tools.client import REFUSED, TROUBLE, CallRefused, RemoteCall, complain, write_all

NAME_BYTES = 256
PIECE_BYTES = 1 << 17


def open_in_disposable(arguments: list[str]) -> int:
    return _open("@dispvm", arguments, "qvm-open-in-dvm [--view-only] FILE|URL")


def open_in_vm(arguments: list[str]) -> int:
    usage = "qvm-open-in-vm [--view-only] QUBE FILE|URL"
    options, words = _split(arguments)
    if len(words) < 2:
        complain(f"usage: {usage}")
        return 1
    return _open(words[0].replace("$", "@"), [*options, *words[1:]], usage)


def run_in_vm(arguments: list[str]) -> int:
    """qvm-run-vm: a shell command, through qubes.VMShell."""
    options, words = _split(arguments)
    if "--dispvm" in options:
        words = ["@dispvm", *words]
    if len(words) < 2:
        complain("usage: qvm-run-vm QUBE COMMAND [ARGUMENTS...]")
        return 1
    command = " ".join(words[1:]).replace("'", "'\"'\"'")
    prefix = f"exec bash -c '{command}' || exit 127\n".encode("utf-8", "surrogateescape")
    return _call(words[0].replace("$", "@"), "qubes.VMShell", 0, 1, prefix)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    words = list(arguments)
    options = []
    while words and words[0].startswith("-") and words[0] != "-":
        option = words.pop(0)
        if option == "--":
            break
        options.append(option)
    return options, words


def _call(target: str, service: str, stdin: int, stdout: int, prefix: bytes = b"") -> int:
    try:
        call = RemoteCall(target, service)
        call.connect()
        return call.pump(stdin, stdout, 2, prefix=prefix, filters=(posix.isatty(stdout), posix.isatty(2)))
    except CallRefused:
        complain("Request refused")
        return REFUSED
    except OSError as error:
        complain(f"cannot call {service}: {error}")
        return TROUBLE


def _open(target: str, arguments: list[str], usage: str) -> int:
    options, words = _split(arguments)
    if len(words) != 1 or set(options) - {"--view-only"}:
        complain(f"usage: {usage}")
        return 1
    untrusted = words[0].encode("utf-8", "surrogateescape")
    if words[0].startswith(("http://", "https://", "ftp://")):
        nothing = posix.open("/dev/null", posix.O_RDONLY)
        return _call(target, "qubes.OpenURL", nothing, 1, untrusted + b"\n")
    try:
        return _open_file(target, untrusted, view_only="--view-only" in options)
    except OSError as error:
        complain(f"{words[0]}: {error.strerror}")
        return 1


def _open_file(target: str, path: bytes, *, view_only: bool) -> int:
    """Send the file; if an edited one comes back, it takes the file's place."""
    name = path.rpartition(b"/")[2][-NAME_BYTES + 12 :]
    if view_only:
        name = b"view-only-" + name
    file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    changed = posix.memfd_create("changed")
    code = _call(target, "qubes.OpenInVM", file, changed, name.ljust(NAME_BYTES, b"\0"))
    if code == 0 and posix.fstat(changed).st_size and not view_only:
        posix.lseek(changed, 0, 0)
        _replace(path, changed)
    return code


def _replace(path: bytes, changed: int) -> None:
    """Atomically; where the directory cannot be written, the edited file is kept in /tmp."""
    directory, _, name = path.rpartition(b"/")
    unfinished = b"%s.edited-%d-%s" % (directory + b"/" if directory else b"", posix.getpid(), name)
    mode = posix.stat(path).st_mode & 0o7777
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC
    try:
        fd = posix.open(unfinished, flags, 0o600)
    except OSError:
        path = unfinished = b"/tmp/edited-%d-%s" % (posix.getpid(), name)
        fd = posix.open(unfinished, flags, 0o600)
        complain(f"its directory cannot be written; the edited file is {path.decode('utf-8', 'replace')}")
    while data := posix.read(changed, PIECE_BYTES):
        write_all(fd, data)
    posix.fchmod(fd, mode)
    posix.close(fd)
    if path != unfinished:
        posix.rename(unfinished, path)
