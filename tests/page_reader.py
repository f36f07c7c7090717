"""A page as a stranger's browser would see it, parsed."""

import html.parser
from pathlib import Path


class PageReader(html.parser.HTMLParser):
    """What a browser sees: elements, attributes, and text by the element it stands in."""

    VOID = ("meta", "br", "path", "use", "link", "img", "input", "hr")

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.stack: list[str] = []
        self.mismatched: list[str] = []
        self.pre: list[tuple[str, bool]] = []  # text, and whether a closed <details class=sensitive> holds it
        self.sensitive = 0
        self.title = ""
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in self.VOID:
            return
        self.stack.append(tag)
        if tag == "pre":
            self.pre.append(("", self.sensitive > 0))
        if tag == "details" and (self.sensitive or dict(attrs).get("class") == "sensitive"):
            self.sensitive += 1
            assert "open" not in dict(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        if not self.stack or self.stack.pop() != tag:
            self.mismatched.append(tag)
        if tag == "details" and self.sensitive:
            self.sensitive -= 1

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.stack and self.stack[-1] == "pre":
            text, hidden = self.pre[-1]
            self.pre[-1] = (text + data, hidden)


def read_page(path: Path) -> PageReader:
    reader = PageReader()
    reader.feed(path.read_text("utf-8"))
    reader.close()
    assert not reader.stack
    assert not reader.mismatched
    return reader
