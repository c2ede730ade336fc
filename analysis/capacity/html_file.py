"""``report.html``: one file without external resources, readable on a phone and on paper.

Owns markup and style sheet. What is said comes from ``report`` and ``tables``, the pictures
from ``figures``; every text is escaped here.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

from analysis.capacity import tables
from analysis.capacity.sheet import Drawing, provenance
from analysis.capacity.words import objective
from analysis.style import page_bytes

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 64rem;
  margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; border-top: 1px solid #ccc; padding-top: .75rem; }
.headline { font-size: 2rem; font-weight: 700; line-height: 1.2; margin: 1rem 0 .5rem; }
.answer { font-size: 1.15rem; margin: .3rem 0; }
.source, figcaption, nav { color: #555; font-size: .9rem; }
nav ol { padding-left: 1.25rem; columns: 18rem auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .25rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 0; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
thead th { white-space: normal; vertical-align: bottom; font-size: .9rem; border-color: #888; }
th:first-child, td:first-child { text-align: left; }
tbody th { font-weight: 400; }
.best { font-weight: 700; background: #eef3f8; }
.every th:nth-child(2), .every td:nth-child(2) { text-align: left; }
.text td { text-align: left; }
figure { margin: 1rem 0; }
figure img { width: 100%; min-width: 40rem; height: auto; display: block; }
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; line-height: 1.35; }
  .headline { font-size: 18pt; }
  #answer h2 { margin-top: 1rem; }
  nav { display: none; }
  .wide { overflow: visible; }
  figure img { min-width: 0; }
  h2 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  table { font-size: 8pt; }
  th, td { padding: .1rem .5rem; }
}
"""


def html_report(report: dict[str, Any], drawings: Sequence[Drawing]) -> str:
    """The page; the same text for the same record."""
    title = f"Capacity of {report['trace']['name']} under SLO {report['slo']['name']}"
    sections = [(drawing.key, drawing.title) for drawing in drawings]
    sections += [("limits", "What the model does not know"), ("every-fleet", "Every fleet")]
    contents = "".join(f'<li><a href="#{key}">{escape(name)}</a></li>' for key, name in sections)
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<link rel="icon" href="data:,">',
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f'<header>\n<h1>{escape(title)}</h1>\n<p class="source">{_source(report)}</p>\n</header>',
        "<main>",
        first_page(report),
        f'<nav aria-label="Contents">\n<ol>{contents}</ol>\n</nav>',
        *(_section(report, drawing) for drawing in drawings),
        f'<section id="limits">\n<h2>What the model does not know</h2>\n'
        f"{_list(report['limits'])}\n</section>",
        f'<section id="every-fleet">\n<h2>Every fleet</h2>\n'
        f"{_table(tables.fleets(report), kind='every')}\n</section>",
        "</main>\n</body>\n</html>\n",
    ]
    return "\n".join(parts)


def first_page(report: dict[str, Any]) -> str:
    """The answer: what to deploy, how many GPUs, what it costs, how sure that is."""
    answer = report["answer"]
    sentences = "\n".join(f'<p class="answer">{escape(text)}</p>' for text in answer["sentences"])
    return "\n".join(
        [
            '<section id="answer">',
            f'<p class="headline">{escape(answer["headline"])}</p>',
            sentences,
            _table(tables.sizes(report)),
            _table(tables.policies(report)),
            "<h2>How sure this is</h2>",
            _list(report["sureness"]),
            "</section>",
        ]
    )


def _source(report: dict[str, Any]) -> str:
    footer = " ".join(provenance(report, f"one or more equal replicas, {report['router']}"))
    footer = footer.replace("\N{NO-BREAK SPACE}", " ")
    return escape(f"The question: {objective(report)}. {footer}.")


def _section(report: dict[str, Any], drawing: Drawing) -> str:
    """A heading, the picture with its caption, and the table that belongs to it."""
    data = base64.b64encode(page_bytes(drawing.figure, "svg")).decode()
    extra = {"crossovers": tables.crossovers, "trace": tables.trace}.get(drawing.key)
    kind = "text" if drawing.key == "crossovers" else ""
    return "\n".join(
        [
            f'<section id="{drawing.key}">\n<h2>{escape(drawing.title)}</h2>\n<figure>',
            f'<div class="wide"><img alt="{escape(drawing.alternative)}" '
            f'src="data:image/svg+xml;base64,{data}"></div>',
            f"<figcaption>{escape(drawing.caption)}</figcaption>\n</figure>",
            _table(extra(report), kind=kind) if extra else "",
            "</section>",
        ]
    )


def _table(table: tables.Table, *, kind: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = []
    for i, row in enumerate(table.rows):
        cells = []
        for k, cell in enumerate(row):
            best = ' class="best"' if (i, k) in table.best else ""
            tag, scope = ("td", "") if k else ("th", ' scope="row"')
            cells.append(f"<{tag}{scope}{best}>{escape(cell)}</{tag}>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    attribute = f' class="{kind}"' if kind else ""
    return (
        f'<h3>{escape(table.title)}</h3>\n<div class="wide">\n'
        f'<table{attribute} aria-label="{escape(table.title)}">\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _list(sentences: Sequence[str]) -> str:
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f"<ul>\n{items}\n</ul>"
