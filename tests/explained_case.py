"""An explained text as a record holds it, and the elements of a page."""

from __future__ import annotations

from html.parser import HTMLParser

EVIL = "</script><script>window.evil = 1</script><img src=x onerror='window.evil=2'> & \"quotes\""

BLOCK = {
    "tokens": ["a", "\x1b[31m[b]", "\n", ""],
    "log_p": [-1.0, -2.0, -3.0, -1.0],
    "log_q": [-0.1, -1.9, -4.0, -0.5],
    "kl": [0.5, 0.0, 0.1, 0.0],
    "changed": [True, False, False, False],
    "likeliest_p": [[["x", 0.5, 0.2], [" ", 0.3, 0.1]]] * 4,
    "likeliest_q": [[["a", 0.3679, 0.9048], [EVIL, 0.1, 0.01]]] * 4,
    "r_prompt": 0.1,
    "r": [0.2, 0.3, 0.1, 0.9],
}


class Elements(HTMLParser):
    """The elements of a page, with what is open at the end."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
