"""qvm-open-in-vm, qvm-open-in-dvm and qvm-run-vm: have another qube open or run something."""

import posix

from cloison_tools.client import REFUSED, TROUBLE, CallRefused, RemoteCall, complain, write_all

NAME_BYTES = 256
PIECE_BYTES = 1 << 17
MAX_GROWTH_BYTES = 256 << 20
"""An edited file may be this much larger than four times the original."""
_CREATE = posix.O_WRONLY | posix.O_CREAT | posix.O_EXCL | posix.O_CLOEXEC | posix.O_NOFOLLOW


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
        code = call.pump(stdin, stdout, 2, prefix=prefix, filters=(posix.isatty(stdout), posix.isatty(2)))
    except CallRefused:
        complain("Request refused")
        return REFUSED
    except OSError as error:
        complain(f"cannot call {service}: {error}")
        return TROUBLE
    return code or (TROUBLE if call.output_lost else 0)


def _may_go_on(target: str) -> bool:
    """A qube that shows a file for another one asks before it makes yet another disposable: a file could loop."""
    served = posix.environ.get(b"QREXEC_SERVICE_FULL_NAME", b"").partition(b"+")[0]
    if not target.startswith("@dispvm") or served not in (b"qubes.OpenInVM", b"qubes.OpenURL"):
        return True
    if not (posix.isatty(0) and posix.isatty(2)):
        complain("this qube shows a file for another one already, and nobody is here to say that it may make another")
        return False
    write_all(2, b"Open it in yet another disposable? [y/N] ")
    return posix.read(0, 16).strip().lower() in (b"y", b"yes")


def _open(target: str, arguments: list[str], usage: str) -> int:
    options, words = _split(arguments)
    if len(words) != 1 or set(options) - {"--view-only"}:
        complain(f"usage: {usage}")
        return 1
    if not _may_go_on(target):
        return REFUSED
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
    before = posix.fstat(file)
    changed = _open_unnamed(path)
    with _file_size_limit(MAX_GROWTH_BYTES + 4 * before.st_size):
        code = _call(target, "qubes.OpenInVM", file, changed, name.ljust(NAME_BYTES, b"\0"))
    if not posix.fstat(changed).st_size or view_only:
        return code
    if code != 0:
        complain("what came back is not whole, and was thrown away; the file here is as it was")
        return code
    posix.lseek(changed, 0, 0)
    _replace(path, changed, before)
    return code


def _open_unnamed(path: bytes) -> int:
    """A file without a name for what comes back: beside the original, else in /tmp, else in memory."""
    for directory in (path.rpartition(b"/")[0] or b".", b"/tmp"):
        try:
            return posix.open(directory, posix.O_TMPFILE | posix.O_RDWR | posix.O_CLOEXEC, 0o600)
        except OSError:
            continue
    return posix.memfd_create("changed")


class _file_size_limit:
    """No file that this process writes becomes larger: whoever edits for us could send without end."""

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes

    def __enter__(self) -> None:
        import resource

        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, self._before[1]))

    def __exit__(self, *_: object) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def _replace(path: bytes, changed: int, before: posix.stat_result) -> None:
    """Atomically. Where that cannot be, the edited file is kept under a name of its own, and the user is told."""
    import os

    path = os.path.realpath(path)  # a link stays a link
    directory, name = os.path.split(path)
    unfinished = b"%s/.%s.edited-%d" % (directory, name[:200], posix.getpid())
    kept, why = path, ""
    now = posix.stat(path)
    if (now.st_mtime_ns, now.st_size) != (before.st_mtime_ns, before.st_size):
        kept, why = b"%s.edited-%d" % (path, posix.getpid()), "it was changed here meanwhile"
    try:
        fd = posix.open(unfinished, _CREATE, 0o600)
    except OSError as error:
        unfinished = kept = b"/tmp/edited-%d-%s" % (posix.getpid(), name)
        why = f"its directory cannot be written ({error.strerror})"
        fd = posix.open(unfinished, _CREATE, 0o600)
    try:
        while data := posix.read(changed, PIECE_BYTES):
            write_all(fd, data)
        posix.fchmod(fd, before.st_mode & 0o7777)
        posix.fsync(fd)
    except OSError:
        posix.unlink(unfinished)
        raise
    finally:
        posix.close(fd)
    if unfinished != kept:
        posix.rename(unfinished, kept)
    if why:
        complain(f"{why}: the edited file is {kept.decode('utf-8', 'replace')!a}")
