"""The page of a proof: nothing from the wire is markup, nothing comes from elsewhere."""

import ipaddress
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.capture.build import ALPHA4, NOBODY4, flows, mail
from tests.capture.test_witnesses import ALPHA, ID, line, socket
from vnsmail.capture.page import page
from vnsmail.capture.proof import Case
from vnsmail.capture.report import Report
from vnsmail.capture.verdict import judge_case

ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "main",
    "header",
    "p",
    "h1",
    "h2",
    "div",
    "dl",
    "dt",
    "dd",
    "b",
    "span",
    "section",
    "ul",
    "li",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
    "br",
    "code",
    "time",
    "small",
    "details",
    "summary",
    "footer",
    "svg",
    "g",
    "path",
    "rect",
    "text",
    "line",
}


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words, self.links = set(), [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.links += [v for k, v in attributes if k in {"href", "src", "onload"}]

    def handle_data(self, data):
        self.words.append(data)


def shown(*connections, sockets=(), lines=None, file="capture.pcapng"):
    case = Case((ALPHA,), lines, sockets, window=(0, 99))
    proof = judge_case(case, flows(*connections))
    names = {ipaddress.ip_address(ALPHA4): "alpha.example"}
    tags = Tags()
    text = page(Report(proof, file, packets=9, drops=0, began=1, ended=9, names=names))
    tags.feed(text)
    return tags, " ".join(tags.words), text


def test_pass():
    tags, words, text = shown(mail(), sockets=[socket()], lines=[line()])

    assert tags.tags <= ALLOWED
    assert [] == tags.links
    assert "default-src 'none'" in text
    assert "PASS" in words
    assert ID in words


def test_what_is_wrong_is_named():
    _, words, _ = shown(
        mail(), mail(NOBODY4, "evil.example"), sockets=[socket(NOBODY4)]
    )

    assert "FAIL" in words
    assert "socket dissents" in words
    assert f"came from {NOBODY4}, an address of nobody here" in words


@settings(max_examples=40)
@given(st.text(min_size=1, max_size=40), st.text(max_size=40))
def test_nothing_from_the_wire_is_markup(name, sender):
    """Whatever a client says and a file is called."""
    said = [name.replace("\n", ""), sender.replace("\n", "")]
    hostile = [f"<script>{text}</script>\"'><img src=x onerror=y>" for text in said]
    tags, _, _ = shown(
        mail(NOBODY4, hostile[0].encode("utf-8", "replace").decode(), sender="x"),
        file=hostile[1].encode("utf-8", "replace").decode(),
    )

    assert tags.tags <= ALLOWED
    assert [] == tags.links


def test_no_packets():
    _, words, _ = shown()

    assert "No message was seen" in words
