"""What a client of qubes.Gpg may ask of the ``gpg`` in the vault, and how it is asked for.

In: an untrusted command line. Out: a ``Plan``: a command line of our own writing with the same meaning, and the
descriptors it uses; or NotAllowed. Client and server read with this one table; the server's reading counts.

Only what uses keys, or lists public parts of them, is here. Nothing that names a file of the vault, changes its key
ring, runs a program, shows a picture, reaches for the network, or gives away a secret key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

HIGHEST_FD = 255
MAX_ARGUMENTS = 256

KEYS, DATA = "keys", "data"
"""What the words behind the options are: names of keys, or where data come from."""
COMMANDS = {
    "sign": DATA,
    "clear-sign": DATA,
    "detach-sign": DATA,
    "encrypt": DATA,
    "decrypt": DATA,
    "verify": DATA,
    "list-keys": KEYS,
    "list-public-keys": KEYS,
    "list-secret-keys": KEYS,
    "list-signatures": KEYS,
    "check-signatures": KEYS,
    "fingerprint": KEYS,
    "export": KEYS,
    "export-ssh-key": KEYS,
    "list-config": KEYS,
    "version": KEYS,
}
MAKES_OUTPUT = frozenset({"sign", "clear-sign", "detach-sign", "encrypt", "decrypt"})
_TOGETHER = frozenset({"sign", "encrypt"})
"""The two commands that may be given both."""

_PLAIN = r"[ -~]{1,512}"
_KEY = r"[^\x00-\x1f\x7f]{1,512}"
_WORD = r"[A-Za-z0-9_.+-]{1,64}"
_NUMBER = r"[0-9]{1,9}"
_LIST = r"[A-Za-z0-9, -]{1,200}"
_CHOSEN = (
    r"(?:(?:no-)?show-(?:uid-validity|unusable-uids|unusable-subkeys|policy-urls|notations|std-notations|user-notations"
    r"|keyserver-urls|keyring|sig-expire|usage|sig-subpackets|only-fpr-mbox|primary-uid-only)[ ,]*)+"
)
"""Options of lists and of verifying, but for showing photographs: those are shown by running a program."""
_FLAGS = """
    armor no-armor textmode no-textmode verbose no-verbose quiet batch no-batch no-tty no-greeting
    no-permission-warning no-secmem-warning no-encrypt-to no-default-recipient default-recipient-self
    with-colons with-fingerprint with-subkey-fingerprint with-keygrip with-secret with-key-data with-sig-list
    with-sig-check with-key-origin with-wkd-hash fixed-list-mode utf8-strings no-utf8-strings emit-version
    no-emit-version no-comments throw-keyids no-throw-keyids no-auto-key-locate no-auto-key-retrieve
    no-auto-check-trustdb always-trust exit-on-status-write-error enable-progress-filter
    enable-special-filenames no-sk-comments no-mangle-dos-filenames ask-cert-level no-ask-cert-level force-mdc
    openpgp rfc4880 gnupg no-symkey-cache yes no use-agent no-escape-from-lines try-all-secrets
    no-for-your-eyes-only for-your-eyes-only list-only disable-dirmngr include-key-block no-include-key-block
"""
FLAGS = frozenset(_FLAGS.split())
VALUES = {
    "local-user": _KEY,
    "default-key": _KEY,
    "recipient": _KEY,
    "hidden-recipient": _KEY,
    "encrypt-to": _KEY,
    "hidden-encrypt-to": _KEY,
    "default-recipient": _KEY,
    "try-secret-key": _KEY,
    "sender": _KEY,
    "keyid-format": _WORD,
    "trust-model": r"pgp|classic|direct|always|auto",
    "charset": _WORD,
    "display-charset": _WORD,
    "cipher-algo": _WORD,
    "digest-algo": _WORD,
    "cert-digest-algo": _WORD,
    "compress-algo": _WORD,
    "compress-level": _NUMBER,
    "bzip2-compress-level": _NUMBER,
    "max-output": _NUMBER,
    "personal-cipher-preferences": _LIST,
    "personal-digest-preferences": _LIST,
    "personal-compress-preferences": _LIST,
    "disable-cipher-algo": _WORD,
    "disable-pubkey-algo": _WORD,
    "weak-digest": _WORD,
    "comment": _PLAIN,
    "set-filename": _PLAIN,
    "set-notation": _PLAIN,
    "sig-notation": _PLAIN,
    "known-notation": _PLAIN,
    "default-sig-expire": _WORD,
    "limit-card-insert-tries": _NUMBER,
    "list-options": _CHOSEN,
    "verify-options": _CHOSEN,
}
FD_VALUES = frozenset({"status-fd", "logger-fd", "attribute-fd"})
IGNORED_VALUES = frozenset({"command-fd", "pinentry-mode"})
"""Accepted and left out: with ``--batch`` nothing is asked, and a passphrase is typed in the vault or nowhere."""
_FALLEN_AWAY = frozenset({"no-sk-comments", "force-mdc", "use-agent", "no-batch", "enable-special-filenames"})
"""Flags that say nothing any more, or what the server decides; accepted and left out."""
ALIASES = {
    "clearsign": "clear-sign",
    "list-key": "list-keys",
    "list-sig": "list-signatures",
    "list-sigs": "list-signatures",
    "check-sigs": "check-signatures",
}
SHORT = {
    "s": "sign",
    "b": "detach-sign",
    "e": "encrypt",
    "d": "decrypt",
    "k": "list-keys",
    "K": "list-secret-keys",
    "a": "armor",
    "t": "textmode",
    "v": "verbose",
    "q": "quiet",
    "u": "local-user",
    "r": "recipient",
    "R": "hidden-recipient",
    "z": "compress-level",
    "N": "set-notation",
}
FORCED = ("--batch", "--no-tty", "--no-auto-key-locate", "--no-auto-key-retrieve", "--disable-dirmngr")
"""Added to every command line: nothing asks, nothing leaves the vault."""


class NotAllowed(Exception):
    """The command line holds something that split GPG does not offer."""


@dataclass
class Plan:
    """What is to be run: ``options`` and ``words`` for gpg, and which descriptors carry what."""

    commands: list[str] = field(default_factory=list)
    options: list[bytes] = field(default_factory=list)
    words: list[bytes] = field(default_factory=list)
    inputs: set[int] = field(default_factory=lambda: {0})
    outputs: set[int] = field(default_factory=lambda: {1, 2})
    spelled: list[bytes] = field(default_factory=list)
    """The options and commands as they were given."""

    @property
    def reads_data(self) -> bool:
        return COMMANDS[self.commands[0]] == DATA

    def gpg_arguments(self) -> list[bytes]:
        """The command line of the vault's gpg (without its name)."""
        forced = [*FORCED, *(["--output=-"] if MAKES_OUTPUT.issuperset(self.commands) else [])]
        commands = [f"--{command}" for command in self.commands]
        return [*(word.encode() for word in forced), *self.options, *(c.encode() for c in commands), b"--", *self.words]

    def request(self) -> list[bytes]:
        """The command line to send to a server, in the user's own spelling."""
        guard = [b"--"] if any(word.startswith(b"-") and word != b"-" for word in self.words) else []
        return [*self.spelled, *guard, *self.words]


class LocalFiles:
    """Files that a client names: they stay with it, and their content travels. A server has none."""

    output: bytes | None = None

    def open_input(self, path: bytes) -> int:
        """A descriptor (at most HIGHEST_FD) from which the file can be read; raises OSError."""
        raise NotImplementedError


def plan_command(untrusted_arguments: list[bytes], files: LocalFiles | None = None) -> Plan:
    """Read a command line; raises NotAllowed with a text for the user. ``files``: only where the user is trusted."""
    if len(untrusted_arguments) > MAX_ARGUMENTS:
        raise NotAllowed("there are too many arguments")
    plan, rest, untrusted_words = Plan(), list(untrusted_arguments), list[bytes]()
    while rest:
        word = rest.pop(0)
        if word == b"--":
            untrusted_words += rest
            break
        if word.startswith(b"--"):
            name, sign, value = word[2:].partition(b"=")
            if files is not None and name == b"output":
                files.output = value if sign else _value_of("output", rest)
                continue
            taken = _take_option(plan, _known_name(name), value if sign else None, rest)
            plan.spelled += [word, *taken]
        elif word.startswith(b"-") and len(word) > 1 and _special_fd(word) is None:
            _take_letters(plan, word[1:], rest, files)
        else:
            untrusted_words.append(word)
    _check_commands(plan)
    for word in untrusted_words:
        read = _data_word(plan, word, files) if plan.reads_data else _checked(word, _KEY, "the name of a key")
        plan.words.append(read)
    _check_words(plan)
    return plan


def _known_name(untrusted_name: bytes) -> str:
    name = untrusted_name.decode("ascii", "replace")
    return ALIASES.get(name, name)


def _take_letters(plan: Plan, letters: bytes, rest: list[bytes], files: LocalFiles | None) -> None:
    """``-bsau KEY``: letters without a value may stand together, the first with a value takes what follows."""
    kept, taken = b"-", list[bytes]()
    while letters:
        letter, letters = letters[:1], letters[1:]
        if letter == b"o" and files is not None:
            files.output = letters or _value_of("output", rest)
            break
        name = SHORT.get(letter.decode("ascii", "replace"), "")
        if name in VALUES:
            kept += letter + letters
            taken = _take_option(plan, name, letters or None, rest)
            break
        _take_option(plan, name or f"-{letter.decode('ascii', 'replace')}", None, rest)
        kept += letter
    if kept != b"-":
        plan.spelled += [kept, *taken]


def _value_of(name: str, rest: list[bytes]) -> bytes:
    if not rest:
        raise NotAllowed(f"option --{name} needs a value")
    return rest.pop(0)


def _take_option(plan: Plan, name: str, value: bytes | None, rest: list[bytes]) -> list[bytes]:
    """Put the option into the plan; returns what was taken from ``rest`` for it."""
    wants_value = name in VALUES or name in FD_VALUES or name in IGNORED_VALUES
    if not wants_value and name not in FLAGS and name not in COMMANDS:
        raise NotAllowed(f"option {ascii('--' + name.removeprefix('-'))[1:-1][:60]} is not allowed in split GPG")
    if not wants_value:
        if value is not None:
            raise NotAllowed(f"option --{name} takes no value")
        if name in COMMANDS:
            plan.commands.append(name)
        elif name not in _FALLEN_AWAY:
            plan.options.append(f"--{name}".encode())
        return []
    taken = []
    if value is None:
        value = _value_of(name, rest)
        taken = [value]
    if name in FD_VALUES:
        fd = _parse_fd(value, name)
        plan.outputs.add(fd)
        value = b"%d" % fd
    elif name in VALUES:
        _checked(value, VALUES[name], f"the value of --{name}")
    if name not in IGNORED_VALUES:
        plan.options.append(f"--{name}=".encode() + value)
    return taken


def _check_commands(plan: Plan) -> None:
    plan.commands = list(dict.fromkeys(plan.commands))
    if not plan.commands:
        raise NotAllowed("there is no command for gpg (hint: --sign, --decrypt, --list-keys...)")
    if "detach-sign" in plan.commands and "sign" in plan.commands:
        plan.commands.remove("sign")  # -bs, as git says it
    if len(plan.commands) > 1 and not _TOGETHER.issuperset(plan.commands):
        raise NotAllowed(f"commands --{plan.commands[0]} and --{plan.commands[1]} do not go together")


def _check_words(plan: Plan) -> None:
    if plan.reads_data:
        most = 2 if plan.commands == ["verify"] else 1
        if len(plan.words) > most or len(set(plan.words)) != len(plan.words):
            raise NotAllowed("there are too many files")
    elif plan.commands == ["list-config"] and plan.words and plan.words[1:]:
        raise NotAllowed("there are too many arguments")
    if clash := plan.inputs & plan.outputs:
        raise NotAllowed(f"descriptor {min(clash)} cannot be for input and output")


def _special_fd(word: bytes) -> int | None:
    """``/dev/fd/N`` or ``-&N``: data come from a descriptor."""
    found = re.fullmatch(rb"(?:/dev/fd/|-&)(0|[1-9][0-9]{0,2})", word)
    return int(found[1]) if found else None


def _data_word(plan: Plan, untrusted_word: bytes, files: LocalFiles | None) -> bytes:
    """Never a file of the vault: ``-``, or a descriptor that carries the client's data."""
    if untrusted_word == b"-":
        return b"-"
    fd = _special_fd(untrusted_word)
    if fd is None and files is not None:
        fd = files.open_input(untrusted_word)
    if fd is None or fd > HIGHEST_FD:
        raise NotAllowed("files cannot be named in split GPG (hint: qubes-gpg-client-wrapper sends them)")
    plan.inputs.add(fd)
    return b"/dev/fd/%d" % fd if fd else b"-"


def _parse_fd(untrusted_value: bytes, name: str) -> int:
    if not re.fullmatch(rb"[1-9][0-9]{0,2}", untrusted_value) or int(untrusted_value) > HIGHEST_FD:
        raise NotAllowed(f"the value of --{name} is not a descriptor from 1 to {HIGHEST_FD}")
    return int(untrusted_value)


def _checked(untrusted_value: bytes, pattern: str, what: str) -> bytes:
    try:
        text = untrusted_value.decode("utf-8")
    except UnicodeDecodeError:
        raise NotAllowed(f"{what} is not UTF-8") from None
    if not re.fullmatch(pattern, text):
        raise NotAllowed(f"{what} is not allowed: {ascii(text)[1:-1][:60]}")
    return untrusted_value
