import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.smtp.test_address import domains, local_parts
from vnsmail.model import Notify, Ret
from vnsmail.smtp.address import Mailbox
from vnsmail.smtp.commands import (
    MAX_COMMAND,
    MAX_MAIL,
    Auth,
    Bdat,
    Command,
    Data,
    Ehlo,
    Helo,
    Help,
    Mail,
    Noop,
    Quit,
    Rcpt,
    Rset,
    Starttls,
    Unknown,
    Vrfy,
    encode,
    parse,
)
from vnsmail.smtp.errors import SmtpSyntaxError

ANNA = Mailbox("anna", "b.example")

WIRE: list[tuple[Command, bytes]] = [
    (Ehlo("b.example"), b"EHLO b.example"),
    (Helo("[192.0.2.1]"), b"HELO [192.0.2.1]"),
    (Mail(None), b"MAIL FROM:<>"),
    (Mail(ANNA), b"MAIL FROM:<anna@b.example>"),
    (
        Mail(ANNA, 7, "8BITMIME", smtputf8=True),
        b"MAIL FROM:<anna@b.example> SIZE=7 BODY=8BITMIME SMTPUTF8",
    ),
    (Mail(ANNA, 0, "7BIT"), b"MAIL FROM:<anna@b.example> SIZE=0 BODY=7BIT"),
    (Rcpt(ANNA), b"RCPT TO:<anna@b.example>"),
    (Rcpt(Mailbox("postmaster", "")), b"RCPT TO:<postmaster>"),
    (Rcpt(Mailbox('> "', "b")), rb'RCPT TO:<"> \""@b>'),
    (Rcpt(Mailbox("ü", "b")), "RCPT TO:<ü@b>".encode()),
    (
        Mail(ANNA, ret=Ret.HDRS, envid="a+2Bb", auth="anna@b.example"),
        b"MAIL FROM:<anna@b.example> RET=HDRS ENVID=a+2Bb AUTH=anna@b.example",
    ),
    (Mail(None, auth="<>"), b"MAIL FROM:<> AUTH=<>"),
    (
        Rcpt(ANNA, (Notify.SUCCESS, Notify.DELAY), "rfc822;a@b"),
        b"RCPT TO:<anna@b.example> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a@b",
    ),
    (Bdat(0, last=True), b"BDAT 0 LAST"),
    (Bdat(123), b"BDAT 123"),
    (Starttls(), b"STARTTLS"),
    (Auth("PLAIN"), b"AUTH PLAIN"),
    (Auth("PLAIN", b""), b"AUTH PLAIN ="),
    (Auth("SCRAM-SHA-256", b"n,,n=a"), b"AUTH SCRAM-SHA-256 biwsbj1h"),
    (Data(), b"DATA"),
    (Rset(), b"RSET"),
    (Noop(), b"NOOP"),
    (Quit(), b"QUIT"),
    (Help(), b"HELP"),
    (Vrfy("anna maria"), b"VRFY anna maria"),
    (Unknown("XCLIENT"), b"XCLIENT"),
]


@pytest.mark.parametrize(("command", "line"), WIRE)
def test_both_ways(command, line):
    """Each command has one line, and that line is read as the command."""
    assert line + b"\r\n" == encode(command)
    assert command == parse(line)


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b"ehlo B.example", Ehlo("B.example")),
        (b"eHlO b.example \t ", Ehlo("b.example")),
        (b"mail FROM:<>", Mail(None)),
        (b"MAIL from:<>", Mail(None)),
        (
            b"MAIL FROM:<> size=12 body=8bitmime smtputf8",
            Mail(None, 12, "8BITMIME", True),
        ),
        (b"MAIL FROM:<> SIZE=00000000000000000012", Mail(None, 12)),
        (b"MAIL FROM:<@x:anna@b.example>", Mail(ANNA)),
        (b"RCPT TO:<anna@B.example>", Rcpt(ANNA)),
        (b'RCPT TO:<"a> SIZE=1"@b>', Rcpt(Mailbox("a> SIZE=1", "b"))),
        (b"noop some thing", Noop()),
        (b"help MAIL", Help()),
        (b"vrfy  anna ", Vrfy("anna")),
        (b"xclient ADDR=1", Unknown("XCLIENT")),
    ],
)
def test_other_spellings(line, command):
    """Case does not matter, nor does white space at the end (RFC 5321 2.4, 4.1.1)."""
    assert command == parse(line)


@pytest.mark.parametrize(
    ("line", "code", "enhanced"),
    [
        (b"", 500, "5.5.2"),
        (b" NOOP", 500, "5.5.2"),
        (b"NO\tOP", 500, "5.5.2"),
        (b"Host: x", 500, "5.5.2"),
        (b"NOOP\x00", 500, "5.5.2"),
        (b"NOOP\rQUIT", 500, "5.5.2"),
        (b"NOOP\nQUIT", 500, "5.5.2"),
        (b"NOOP \x1b[2J", 500, "5.5.2"),
        ("NOOP \u2028".encode(), 500, "5.5.2"),
        ("NOOP \x9b".encode(), 500, "5.5.2"),
        (b"NOOP \xff", 500, "5.5.2"),
        (b"NOOP \xc0\x8a", 500, "5.5.2"),
        (b"NOOP \xed\xa0\x80", 500, "5.5.2"),
        (b"EHLO", 501, "5.5.4"),
        (b"EHLO  b", 501, "5.5.4"),
        (b"EHLO b c", 501, "5.5.4"),
        (b"EHLO [1.2.3]", 501, "5.5.4"),
        (b"DATA x", 501, "5.5.4"),
        (b"QUIT x", 501, "5.5.4"),
        (b"RSET x", 501, "5.5.4"),
        (b"VRFY", 501, "5.5.4"),
        (b"MAIL", 501, "5.5.4"),
        (b"MAIL <>", 501, "5.5.4"),
        (b"MAIL FROM <>", 501, "5.5.4"),
        (b"MAIL  FROM:<>", 501, "5.5.4"),
        (b"MAIL FROM :<>", 501, "5.5.4"),
        (b"MAIL FROM: <>", 501, "5.1.7"),
        (b"MAIL FROM:", 501, "5.1.7"),
        (b"MAIL FROM:<", 501, "5.1.7"),
        (b'MAIL FROM:<"a@b>', 501, "5.1.7"),
        (b"MAIL FROM:<a>", 501, "5.1.7"),
        (b"MAIL FROM:<>>", 501, "5.5.4"),
        (b"MAIL FROM:<>SIZE=1", 501, "5.5.4"),
        (b"MAIL FROM:<>  SIZE=1", 501, "5.5.4"),
        (b"MAIL FROM:<> SIZE", 501, "5.5.4"),
        (b"MAIL FROM:<> SIZE=", 501, "5.5.4"),
        (b"MAIL FROM:<> SIZE=-1", 501, "5.5.4"),
        (b"MAIL FROM:<> SIZE=1_0", 501, "5.5.4"),
        (b"MAIL FROM:<> SIZE=123456789012345678901", 501, "5.5.4"),
        ("MAIL FROM:<> SIZE=\u0661".encode(), 501, "5.5.4"),
        (b"MAIL FROM:<> SIZE=1 SIZE=1", 501, "5.5.4"),
        (b"MAIL FROM:<> SIZE=1=1", 501, "5.5.4"),
        (b"MAIL FROM:<> BODY", 501, "5.5.4"),
        (b"MAIL FROM:<> BODY=BINARYMIME", 555, "5.5.4"),
        (b"MAIL FROM:<> SMTPUTF8=1", 501, "5.5.4"),
        (b"MAIL FROM:<> -X", 501, "5.5.4"),
        (b"MAIL FROM:<> AUTH=<", 501, "5.1.3"),
        (b"RCPT FROM:<>", 501, "5.5.4"),
        (b"RCPT TO:<>", 501, "5.1.3"),
        (b"RCPT TO: <a@b>", 501, "5.1.3"),
        (b"RCPT TO:a@b", 501, "5.1.3"),
        (b"RCPT TO:<a@b> NOTIFY=EVER", 501, "5.5.4"),
        (b"RCPT TO:<a@b> ?", 501, "5.5.4"),
    ],
)
def test_refused(line, code, enhanced):
    """What is not in the grammar has a reply that says so."""
    with pytest.raises(SmtpSyntaxError) as caught:
        parse(line)

    assert (code, enhanced) == (caught.value.reply.code, caught.value.reply.enhanced)


@pytest.mark.parametrize(
    ("start", "limit"), [(b"NOOP ", MAX_COMMAND), (b"MAIL FROM:<> ", MAX_MAIL)]
)
def test_length(start, limit):
    """A line may be as long as the RFCs say, with its CRLF, and no longer."""
    longest = start + b"x" * (limit - 2 - len(start))
    with pytest.raises(SmtpSyntaxError) as caught:
        parse(longest + b"x")

    assert (caught.value.reply.code, caught.value.reply.text) == (500, "line too long")
    if start == b"NOOP ":
        assert Noop() == parse(longest)
    else:
        with pytest.raises(SmtpSyntaxError, match="parameter"):
            parse(longest)


@pytest.mark.parametrize(
    "command",
    [
        Rcpt(Mailbox("a\r\nDATA", "b")),
        Rcpt(Mailbox("a\n", "b")),
        Rcpt(Mailbox("a\r", "b")),
        Rcpt(Mailbox("a\x00", "b")),
        Rcpt(Mailbox("a", "b\r\nDATA")),
        Rcpt(Mailbox("a", "b> NOTIFY=NEVER")),
        Rcpt(Mailbox("a", "B")),
        Rcpt(Mailbox("a", "")),
        Rcpt(Mailbox("\ud800", "b")),
        Rcpt(Mailbox("", "")),
        Mail(Mailbox("", "")),
        Mail(Mailbox("postmaster", "")),
        Mail(ANNA, -1),
        Mail(ANNA, 10**20),
        Mail(Mailbox("a" * 600, "b")),
        Ehlo(""),
        Ehlo("a b"),
        Ehlo("a\r\nMAIL FROM:<>"),
        Helo("ü"),
        Vrfy(""),
        Vrfy(" a"),
        Vrfy("a "),
        Vrfy("a\r\nb"),
        Unknown("NOOP"),
        Unknown("x"),
        Unknown("X Y"),
        Unknown("X\r\nY"),
        Unknown(""),
    ],
)
def test_never_sent(command):
    """What would be read as something else is not sent: no command can be injected."""
    with pytest.raises(SmtpSyntaxError):
        encode(command)


mailboxes = st.builds(Mailbox, local_parts, domains.map(str.lower))
commands = st.one_of(
    st.builds(Ehlo, domains),
    st.builds(Helo, domains),
    st.builds(
        Mail,
        st.none() | mailboxes,
        st.none() | st.integers(0, 10**20 - 1),
        st.sampled_from([None, "7BIT", "8BITMIME"]),
        st.booleans(),
    ),
    st.builds(Rcpt, mailboxes),
    st.sampled_from([Data(), Rset(), Noop(), Quit(), Help()]),
    st.builds(Vrfy, st.from_regex(r"[!-~]([ -~]{0,20}[!-~])?", fullmatch=True)),
    st.builds(Unknown, st.from_regex(r"X[A-Z0-9-]{0,8}", fullmatch=True)),
)


@given(commands)
def test_commands_survive_the_wire(command):
    """parse() is the exact inverse of encode()."""
    line = encode(command)

    assert line.endswith(b"\r\n")
    assert command == parse(line.removesuffix(b"\r\n"))


@given(
    st.builds(Mailbox, st.text(max_size=10), st.text(max_size=10))
    | st.builds(
        Mailbox, st.text("a\r\n\0 <>", max_size=5), st.text("b\r\n>", max_size=5)
    )
)
def test_nothing_gets_in_by_an_address(mailbox):
    """Whatever a mailbox is made of: one line that means it, or no line."""
    try:
        line = encode(Rcpt(mailbox))
    except SmtpSyntaxError:
        return

    assert 1 == line.count(b"\r") == line.count(b"\n")
    assert b"\0" not in line
    assert Rcpt(mailbox) == parse(line[:-2])


@given(
    st.binary(max_size=60)
    | st.tuples(
        st.sampled_from([b"MAIL FROM:<", b"RCPT TO:<", b"EHLO ", b"VRFY "]),
        st.binary(max_size=30),
    ).map(b"".join)
)
def test_any_line_is_a_command_or_refused(line):
    """No line makes anything else happen, and each command read has its own line."""
    try:
        command = parse(line)
    except SmtpSyntaxError as error:
        assert 500 <= error.reply.code < 600  # noqa: PT017 -- one of two good ends
        return

    assert command == parse(encode(command).removesuffix(b"\r\n"))
