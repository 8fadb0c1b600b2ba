# Copyright: (c) 2026, meshops.istio_egress contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""PRIVATE to this collection. Results as pictures: the way of one request, and the ways of all requests of a policy, as SVG.

Pure: what a module returned goes in, the text of an SVG 1.1 document comes out. It draws what the result says, and knows nothing of Istio.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

LINE, LETTER, MARGIN = 20, 7.3, 16
"""Height of a line, width of a letter of the monospaced font at its size, and the free space around, in pixels."""
WIDEST = 120
"""Letters of a sentence in one line."""
STATIONS = ("pod", "sidecar", "gateway", "far end")
STOPS = {"mesh": "sidecar", "gateway": "gateway", "gateway policy": "gateway", "far end": "far end", "network": "far end"}
"""Where a request ends by whom; all others end in the pod."""
AROUND = ("bypass", "no sidecar")
GAP = 130
STYLE = (
    "text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#24292f;white-space:pre}"
    ".head{font-weight:bold}.soft{fill:#6e7781}.object{fill:#0550ae}.allowed{fill:#1a7f37}.blocked{fill:#cf222e}.unknown{fill:#9a6700}"
    "path{fill:none;stroke-width:2}path.allowed{stroke:#1a7f37;fill:none}path.blocked{stroke:#cf222e;fill:none}path.unknown{stroke:#9a6700;fill:none}"
    "path.rail{stroke:#d0d7de}"
)


class Page:
    """Text and shapes, and how much room they take."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._right, self._bottom = 0.0, 0.0

    def text(self, x: float, y: float, words: str, kind: str = "") -> None:
        self._parts.append(f'<text x="{x:g}" y="{y:g}"{_class(kind)}>{escape(words)}</text>')
        self._reach(x + len(words) * LETTER, y)

    def line(self, points: str, kind: str) -> None:
        """`points` is the data of an SVG path."""
        self._parts.append(f'<path d="{points}"{_class(kind)}/>')

    def dot(self, x: float, y: float, kind: str) -> None:
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="5"{_class(kind)}/>')
        self._reach(x, y)

    def document(self, title: str) -> str:
        width, height = round(self._right) + MARGIN, round(self._bottom) + MARGIN
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *self._parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"

    def _reach(self, x: float, y: float) -> None:
        self._right, self._bottom = max(self._right, x), max(self._bottom, y)


def path_svg(result: Mapping[str, Any]) -> str:
    """The way of one request from top to bottom. `result` is what istio_egress_explain returned."""
    page, rail = Page(), MARGIN + 6
    hops = result["path"]
    title = result["picture"][0]
    names = rail + LINE
    texts = names + (max((len(h["hop"]) for h in hops), default=0) + 2) * LETTER
    y = MARGIN + 4
    page.text(MARGIN, y, title, "head")
    dots, at = [], None
    for hop in hops:
        if hop["at"] != at and hop["hop"] != "host":
            y += LINE * 1.4
            page.text(names, y, hop["at"], "soft")
        at = hop["at"]
        y += LINE
        dots.append(y - 4)
        page.text(names, y, hop["hop"], "head")
        page.text(texts, y, hop["what"])
        for words, kind in ((hop["object"], "object"), *((f"passed over: {lost['object']}, {lost['why']}", "soft") for lost in hop["lost"])):
            if words:
                y += LINE * 0.85
                page.text(texts, y, words, kind)
    y += LINE * 1.6
    verdict = result["verdict"]
    page.line(f"M{rail:g} {dots[0] if dots else y - 4:g}V{y - 4:g}", "rail")
    for place in dots:
        page.dot(rail, place, "soft")
    page.dot(rail, y - 4, verdict)
    for words, kind in ((f"{verdict}: {result['reason']}", verdict), (f"fix: {result['fix']}" if result["fix"] else "", "")):
        for line in textwrap.wrap(words, WIDEST, break_on_hyphens=False):
            page.text(names, y, line, kind)
            y += LINE
    return page.document(f"{title}: {verdict}")


def policy_svg(result: Mapping[str, Any]) -> str:
    """One line for each request, from the pod to where it ended. `result` is what istio_egress_check returned."""
    page, checks = Page(), result["checks"]
    first = MARGIN + (max((len(c["url"]) for c in checks), default=0) + 3) * LETTER
    places = {name: first + i * GAP for i, name in enumerate(STATIONS)}
    y = MARGIN + 4
    for name, x in places.items():
        page.text(x - len(name) * LETTER / 2, y, name, "soft")
    page.text(MARGIN, y, result["pod"], "head")
    for check in checks:
        y += LINE * 1.4
        _row(page, check, places, y)
    met = sum(c["met"] is True for c in checks)
    return page.document(f"{result['pod']}: {len(checks)} requests, {met} as expected, {sum(c['met'] is False for c in checks)} not")


def _row(page: Page, check: Mapping[str, Any], places: Mapping[str, float], y: float) -> None:
    verdict, level = check["verdict"], y - 4
    end = places["far end" if verdict != "blocked" else STOPS.get(check["by"], "pod")]
    start, sidecar = places["pod"], places["sidecar"]
    page.text(MARGIN, y, check["url"])
    if check["via"] in AROUND:
        way = f"M{start:g} {level:g}C{start + 40:g} {level - 16:g} {sidecar + 40:g} {level - 16:g} {sidecar + 80:g} {level:g}H{end:g}"
    else:
        way = f"M{start:g} {level:g}H{end:g}"
    page.line(way, verdict)
    page.dot(start, level, verdict)
    if check["via"] not in AROUND and end > sidecar:
        page.dot(sidecar, level, verdict)
    if check["gateway"] and end != places["gateway"]:
        page.dot(places["gateway"], level, verdict)
    if verdict == "blocked":
        page.line(f"M{end - 6:g} {level - 6:g}L{end + 6:g} {level + 6:g}M{end - 6:g} {level + 6:g}L{end + 6:g} {level - 6:g}", verdict)
    else:
        page.line(f"M{end - 8:g} {level - 6:g}L{end:g} {level:g}L{end - 8:g} {level + 6:g}", verdict)
    words = " ".join(_words(check))
    page.text(places["far end"] + LINE, y, words, verdict if check["met"] is not False else "unknown")


def _words(check: Mapping[str, Any]) -> Iterable[str]:
    yield check["result"]
    if check["by"]:
        yield f"by the {check['by']}" if check["by"] != "unknown" else "by nobody knows whom"
    if check["met"] is False:
        yield "- expected " + " ".join(filter(None, (check["expect"], f"via {check['expect_via']}" if check["expect_via"] else "")))


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
