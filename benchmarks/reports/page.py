"""The HTML page of a report: a single file without external resources."""

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #5b6876; --paper: #fff; --line: #d8dee6;
  --panel: #f5f7fa; --good: #1f8a4c; --bad: #c43838; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #9aa7b6; --paper: #14191f;
  --line: #313b47; --panel: #1c232b; --good: #4cc38a; --bad: #ff7b72; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1180px; margin: 0 auto; padding: 24px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 16px; margin: 0 0 2px; }
p { margin: 0 0 8px; color: var(--soft); }
code { font-size: 12.5px; overflow-wrap: anywhere; }
.verdict { font-weight: 600; margin: 10px 0; }
.good { color: var(--good); } .bad { color: var(--bad); }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 10px;
  margin: 16px 0; }
.number { background: var(--panel); border-radius: 8px; padding: 10px 12px; }
.number b { display: block; font-size: 19px; } .number span { color: var(--soft); font-size: 13px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(520px, 1fr)); gap: 18px; }
.plot { border: 1px solid var(--line); border-radius: 8px; padding: 12px; margin: 0; min-width: 0; }
.wide { grid-column: 1 / -1; }
.plot svg { width: 100%; height: auto; color: var(--ink); }
.table { overflow-x: auto; margin: 18px 0; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px;
  font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 5px 9px; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
td small { color: var(--soft); }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page with a title and parts in HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def plot(title: str, text: str, svg: str, *, is_wide: bool = False) -> str:
    kind = "plot wide" if is_wide else "plot"
    return f'<figure class="{kind}"><h2>{escape(title)}</h2><p>{escape(text)}</p>{svg}</figure>'


def plots(parts: Iterable[str]) -> str:
    return f'<div class="plots">{"".join(parts)}</div>'


def numbers(items: Iterable[tuple[str, str]]) -> str:
    """Return numbers in large type, each with its label."""
    cells = (
        f'<div class="number"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in items
    )
    return f'<div class="numbers">{"".join(cells)}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table. Text after a line break in a cell is small."""
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f'<div class="table"><table><tr>{heads}</tr>{body}</table></div>'


def cell(text: str) -> str:
    value, _, small = text.partition("\n")
    return f"<td>{escape(value)}{f'<br><small>{escape(small)}</small>' if small else ''}</td>"


def verdict(text: str, *, is_good: bool) -> str:
    return f'<div class="verdict {"good" if is_good else "bad"}">{escape(text)}</div>'


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def command(text: str) -> str:
    return f"<p><code>{escape(text)}</code></p>"
