"""The text that a reader of an e-mail (RFC 822) sees: its body, without headers, attachments and markup."""

import re
from email import message_from_bytes
from email.policy import default
from html.parser import HTMLParser
from typing import cast

UNDECLARED = ("utf-8", "windows-1252")
"""What 8-bit text is taken for where a mail declares no character set, or ASCII."""

_BLOCK = re.compile(
    "address|article|blockquote|br|center|dd|div|dl|dt|form|h[1-6]|hr|li|ol|p|pre|table|title|tr|ul"
)
_HIDDEN = frozenset(("script", "style"))


class UnreadableMail(ValueError):
    """A mail without usable text; the message is one of a few fixed phrases, so that it can be counted."""


def extract_mail_text(data: bytes) -> str:
    """The plain text of a mail's body, or of its HTML where it has nothing else. Line ends are `\\n`.

    Raises:
        UnreadableMail: not a mail, no text, or text that is not in the character set it claims.
    """
    try:
        mail = message_from_bytes(data, policy=default)
        body = mail.get_body(("plain", "html")) if mail.keys() else None
        if body is None:
            raise UnreadableMail("no text in the mail" if mail.keys() else "not a mail")
        payload = cast(bytes, body.get_payload(decode=True))
        text = _decode(payload, body.get_content_charset())
        if body.get_content_type() == "text/html":
            text = strip_html(text)
    except UnreadableMail:
        raise
    except Exception:  # the standard library raises nearly anything for malformed headers and markup
        raise UnreadableMail("malformed mail") from None
    return text.replace("\r\n", "\n").strip("\n")


def _decode(payload: bytes, charset: str | None) -> str:
    for candidate in UNDECLARED if charset in (None, "us-ascii") else (charset,):
        try:
            return payload.decode(candidate)
        except LookupError:
            raise UnreadableMail("character set is not known") from None
        except UnicodeDecodeError:
            continue
    raise UnreadableMail("not in its character set")


def strip_html(markup: str) -> str:
    """The visible text of HTML: white space collapsed, a new line at each block, no scripts and styles."""
    extractor = _TextExtractor()
    extractor.feed(markup)
    extractor.close()
    text = re.sub(r" ?\n ?", "\n", re.sub(r" {2,}", " ", "".join(extractor.parts)))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


class _TextExtractor(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._is_hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_hidden = tag in _HIDDEN
        self._break_line(tag)

    def handle_endtag(self, tag: str) -> None:
        self._is_hidden = False
        self._break_line(tag)

    def handle_data(self, data: str) -> None:
        if not self._is_hidden:
            self.parts.append(re.sub(r"\s+", " ", data))

    def _break_line(self, tag: str) -> None:
        if _BLOCK.fullmatch(tag):
            self.parts.append("\n")
