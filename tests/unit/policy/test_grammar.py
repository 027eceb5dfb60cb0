"""One line at a time: what is a rule, what is refused, and in which words."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cloison.policy import PolicyError, Rule
from cloison.policy.grammar import decode_policy, find_errors, parse_new, parse_old
from cloison.policy.rules import Compat40, Include, IncludeDirectory, IncludeService, RulePlace, ServicePattern
from cloison.policy.tokens import Column, TokenError, TokenKind, parse_token

S, T, R, Q = Column.SOURCE, Column.TARGET, Column.REDIRECT, Column.REQUEST
UUID = "uuid:6f1c0d3e-0000-4000-8000-00000000abcd"


def rule_of(line: str) -> Rule:
    (statement,) = parse_new(line, "f")
    assert isinstance(statement, Rule)
    return statement


@pytest.mark.parametrize(
    ("word", "kind", "columns"),
    [
        ("work", TokenKind.QUBE, {S, T, R, Q}),
        ("$anyvm", TokenKind.QUBE, {S, T, R, Q}),
        ("anything+at all/\x07", TokenKind.QUBE, {S, T, R, Q}),
        (UUID, TokenKind.QUBE, {S, T, R, Q}),
        ("uuid:", TokenKind.QUBE, {S, T, R, Q}),
        ("*", TokenKind.EVERYTHING, {S, T}),
        ("@anyvm", TokenKind.ANY_QUBE, {S, T}),
        ("@adminvm", TokenKind.ADMIN, {S, T, R, Q}),
        ("dom0", TokenKind.ADMIN, {S, T, R, Q}),
        ("uuid:00000000-0000-0000-0000-000000000000", TokenKind.ADMIN, {S, T, R, Q}),
        ("@default", TokenKind.DEFAULT, {T, Q}),
        ("@dispvm", TokenKind.DISPOSABLE, {T, R, Q}),
        ("@dispvm:dvm", TokenKind.DISPOSABLE_OF, {S, T, R, Q}),
        (f"@dispvm:{UUID}", TokenKind.DISPOSABLE_OF, {S, T, R, Q}),
        ("@dispvm:@tag:t", TokenKind.DISPOSABLE_TAGGED, {S, T}),
        ("@tag:t", TokenKind.TAG, {S, T}),
        ("@type:AppVM", TokenKind.TYPE, {S, T}),
        *((word, None, set()) for word in (
            "", "@", "@tag:", "@type:", "@dispvm:", "@dispvm:@tag:", "@tag:@x", "@type:@x", "@dispvm:@x",
            "@dispvm:@dispvm",
            "@dispvm:@type:AppVM", "@dispvm:@tag:@x", "@anyvm:x", "@adminvm:x", "@default:x", "@DISPVM", "@Anyvm",
            "@dispvmX",
            "@uuid:x", "@anyvm ",
        )),
    ],
)  # fmt: skip
def test_each_word_may_stand_in_its_columns_and_nowhere_else(word: str, kind: TokenKind | None, columns: set[Column]):
    for column in Column:
        if column in columns:
            assert parse_token(word, column).kind is kind
        else:
            with pytest.raises(TokenError):
                parse_token(word, column)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("s * a b allow", "s * a b allow"),
        ("  s\t*\u00a0a \x0b b\x0callow  ", "s * a b allow"),
        ("s + a b deny", "s + a b deny"),
        ("s +x+y a b deny notify=no", "s +x+y a b deny notify=no"),
        ("s * a b deny notify=yes", "s * a b deny"),
        ("* * @anyvm * ask", "* * @anyvm * ask"),
        ("A.b-c_D9 * a b allow user=", "A.b-c_D9 * a b allow"),
        ("s * a b allow user=x=y target=c", "s * a b allow target=c user=x=y"),
        ("s * a @default allow target=dom0", "s * a @default allow target=dom0"),
        ("s * a @default ask", "s * a @default ask"),
        ("s * a b ask target=@dispvm:c default_target=@adminvm autostart=no notify=yes",
         "s * a b ask target=@dispvm:c default_target=@adminvm notify=yes autostart=no"),
    ],
)  # fmt: skip
def test_rules_are_read(line: str, shown: str):
    assert str(rule_of(line)) == shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("s * a b", "f:1: a rule needs at least 5 words, here are 4"),
        ("s x a b allow", "f:1: argument 'x' must be '*' or start with '+'"),
        ("s a b allow x=y", "f:1: argument 'a' must be '*' or start with '+'"),
        ("s+x * a b allow", "f:1: invalid service name 's+x'"),
        ("sérvice * a b allow", "f:1: invalid service name 's\\xe9rvice'"),
        ("s +a:b a b allow", "f:1: invalid argument '+a:b'"),
        ("* +x a b allow", "f:1: service '*' needs argument '*'"),
        ("s * a b Allow", "f:1: unknown action 'Allow'"),
        ("s * a b allow,target=c", "f:1: unknown action 'allow,target=c'"),
        ("s * @dispvm b allow", "f:1: '@dispvm' may not stand in the source column"),
        ("s * @default b allow", "f:1: '@default' may not stand in the source column"),
        ("s * a @anyvmx allow", "f:1: unknown keyword '@anyvmx'"),
        ("s * a @tag: allow", "f:1: nothing follows '@tag:'"),
        ("s * a b allow target=@anyvm", "f:1: '@anyvm' may not stand in target= or default_target="),
        ("s * a b allow target=", "f:1: the name of a qube is missing"),
        ("s * a b allow target=*", "f:1: '*' may not stand in target= or default_target="),
        ("s * a b allow default_target=c", "f:1: allow has no parameter 'default_target'"),
        ("s * a b deny target=c", "f:1: deny has no parameter 'target'"),
        ("s * a b deny user=c", "f:1: deny has no parameter 'user'"),
        ("s * a b deny autostart=no", "f:1: deny has no parameter 'autostart'"),
        ("s * a b allow user=a user=a", "f:1: parameter 'user' is given twice"),
        ("s * a b allow notify", "f:1: parameter 'notify' has no '='"),
        ("s * a b allow # because", "f:1: parameter '#' has no '=' (hint: comments stand on lines of their own)"),
        ("s * a b allow Notify=yes", "f:1: allow has no parameter 'Notify'"),
        ("s * a b allow notify=maybe", "f:1: notify= must be yes or no, not 'maybe'"),
        ("s * a b ask autostart=Yes", "f:1: autostart= must be yes or no, not 'Yes'"),
        ("s * a @default allow", "f:1: allow for @default needs target="),
        ("!", "f:1: unknown directive '!'"),
        ("! include x", "f:1: unknown directive '!'"),
        ("!included x", "f:1: unknown directive '!included'"),
        ("!include", "f:1: !include has 0 operands"),
        ("!include a b", "f:1: !include has 2 operands"),
        ("!include-service s f", "f:1: !include-service has 2 operands"),
        ("!include-service s x f", "f:1: argument 'x' must be '*' or start with '+'"),
        ("!include-service * +x f", "f:1: service '*' needs argument '*'"),
        ("!compat-4.0 x", "f:1: !compat-4.0 has 1 operands"),
        ("s * a b \x1b[31mallow", "f:1: unknown action '\\x1b[31mallow'"),
        ("\ufeffs * a b allow", "f:1: invalid service name '\\ufeffs'"),
    ],
)  # fmt: skip
def test_errors_name_file_line_and_fault(line: str, message: str):
    with pytest.raises(PolicyError) as caught:
        list(parse_new(line, "f"))
    assert str(caught.value).startswith(message)
    assert (caught.value.file, caught.value.line) == ("f", 1)


def test_directives_are_read():
    text = "!include a/b\n!include-dir /c\n!include-service s +x d\n!include-service * * e\n!compat-4.0\n"
    assert list(parse_new(text, "f")) == [
        Include("a/b", RulePlace("f", 1)),
        IncludeDirectory("/c", RulePlace("f", 2)),
        IncludeService(ServicePattern("s", "+x"), "d", RulePlace("f", 3)),
        IncludeService(ServicePattern("*", "*"), "e", RulePlace("f", 4)),
        Compat40(RulePlace("f", 5)),
    ]


def test_lines_are_counted_over_all_newlines_comments_and_nothing_else():
    text = "# one\r\n\r   # three\n\x0b\x0c\u2028\ns * a b allow\rs * a b deny"
    assert [statement.place.line for statement in parse_new(text, "f")] == [5, 6]


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("a b allow", "s +x a b allow"),
        ("$anyvm $adminvm ask", "s +x @anyvm @adminvm ask"),
        ("$anyvm $dispvm:dvm allow,target=x,user=y", "s +x @anyvm @dispvm:dvm allow target=x user=y"),
        ("a  @default  ask,default_target=$dispvm", "s +x a @default ask default_target=@dispvm"),
        ("a,b,deny", "s +x a b deny"),
    ],
)
def test_the_old_syntax_is_read(line: str, shown: str):
    (statement,) = parse_old(line, "f", ServicePattern("s", "+x"))
    assert str(statement) == shown


@pytest.mark.parametrize("line", ["$include:include/f", "$include: include/f", "!include include/f"])
def test_the_old_syntax_includes(line: str):
    assert list(parse_old(line, "f", ServicePattern("s", "*"))) == [Include("include/f", RulePlace("f", 1))]


@pytest.mark.parametrize("line", ["a b", "!include-dir x", "!compat-4.0", "!include-service s * f", "a b perhaps", ","])
def test_the_old_syntax_refuses(line: str):
    with pytest.raises(PolicyError, match=r"^f:1: "):
        list(parse_old(line, "f", ServicePattern("s", "*")))


def test_a_linter_sees_every_bad_line():
    text = "s * a b allow\nbad\n\ns * @nope b allow\n!include nowhere\n"
    assert [error.line for error in find_errors(text, "f")] == [2, 4]


def test_text_that_is_not_utf8_is_refused_with_its_line():
    with pytest.raises(PolicyError, match=r"^f:3: the file is not UTF-8 text$"):
        decode_policy(b"# a\r\n\n# \xff\n", "f")


words = st.sampled_from(
    ["s", "*", "+", "+x", "@anyvm", "@dispvm:", "@tag:", "@tag:t", "allow", "ask", "deny", "target=", "target=@dispvm",
     "user=x", "notify=no", "=", "!include", "!include-service", "!", "#", "\r", "\n", "\0", "\ud7ff", "$include:"]
)  # fmt: skip
texts = st.one_of(st.text(), st.lists(words).map(" ".join))


@given(texts)
@example("\x85s * a b allow")
def test_no_text_raises_anything_but_a_policy_error(text: str):
    for parse in (
        lambda: list(parse_new(text, "f")),
        lambda: list(parse_old(text, "f", ServicePattern("s", "*"))),
        lambda: list(find_errors(text, "f")),
    ):
        try:
            parse()
        except PolicyError as error:
            assert error.line is not None and "\n" not in str(error)


@given(st.binary())
def test_no_bytes_raise_anything_but_a_policy_error(content: bytes):
    try:
        list(parse_new(decode_policy(content, "f"), "f"))
    except PolicyError:
        pass


@given(texts)
def test_a_rule_written_out_reads_back_the_same(text: str):
    for statement in _all_rules(text):
        again = rule_of(str(statement))
        assert again == statement._replace(place=again.place)


def _all_rules(text: str) -> list[Rule]:
    try:
        return [statement for statement in parse_new(text, "f") if isinstance(statement, Rule)]
    except PolicyError:
        return []
