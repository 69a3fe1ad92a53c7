"""How a run's page looks: in light and dark, on a wide screen, a narrow one and on paper.

Each colour of text has a contrast of at least 4.5 to 1 to what is behind it, each of a line or bar 3 to 1 (WCAG 2.1,
1.4.3 and 1.4.11); tests/page measures the first.
"""

from __future__ import annotations

from console.markup import Markup

_LIGHT = """
  --ground: #f4f6f8; --card: #ffffff; --text: #1a2027; --quiet: #56606c; --line: #d8dee5; --code: #eef1f5;
  --good: #1a7436; --warn: #8a5a00; --bad: #b3261e; --unknown: #6d3fc0; --left: #45556b;
  --source: #2460a7; --destination: #0d7a6c;
  --disk-1: #2460a7; --disk-2: #0d7a6c; --disk-3: #8a4fa3; --disk-4: #7a6a00; --disk-5: #5b6675;
  --files: #5b6675; --memory: #b25400; --dirty: #b3261e; --link: #56606c;
"""
_DARK = """
  --ground: #0e1116; --card: #171c23; --text: #e5e9ee; --quiet: #9ba7b4; --line: #2f3842; --code: #222932;
  --good: #5ac77f; --warn: #e3b04b; --bad: #ff8a80; --unknown: #c3a6ff; --left: #a9b8ca;
  --source: #6ea8f0; --destination: #45c4b0;
  --disk-1: #6ea8f0; --disk-2: #45c4b0; --disk-3: #cf9be6; --disk-4: #d2c04a; --disk-5: #9ba7b4;
  --files: #9ba7b4; --memory: #f0a04b; --dirty: #ff8a80; --link: #9ba7b4;
"""
_PAGE = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 40px; }
section, header { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 20px 24px; margin: 0 0 16px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; line-height: 1.3; margin: 0 0 14px; }
p { margin: 0; overflow-wrap: anywhere; }
code { font: 13px/1.45 ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", monospace;
  background: var(--code); border-radius: 4px; padding: 1px 5px; overflow-wrap: anywhere;
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.quiet, figcaption, dt { color: var(--quiet); }
.bad { color: var(--bad); } .warn { color: var(--warn); } .good { color: var(--good); }
.unknown { color: var(--unknown); } .left { color: var(--left); }

/* How it ended. */
header { border-top: 4px solid currentColor; color: var(--left); padding-top: 18px; }
header.good { color: var(--good); } header.warn { color: var(--warn); } header.bad { color: var(--bad); }
header.unknown { color: var(--unknown); }
header h1, header p { color: var(--text); }
header .outcome { display: flex; flex-wrap: wrap; gap: 4px 8px; align-items: center; margin: 0 0 6px; color: inherit;
  font-size: 13px; font-weight: 600; letter-spacing: .04em; text-transform: uppercase; }
header .outcome svg { fill: none; stroke: currentColor; stroke-width: 2; flex: none; }
header .quiet { color: var(--quiet); margin-top: 6px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(160px, 1fr)); gap: 16px 24px;
  margin: 20px 0 0; padding: 16px 0 0; border-top: 1px solid var(--line); color: var(--text); }
.figures div { border: 0; padding: 0; display: flex; flex-direction: column; }
.figures dt { font-size: 13px; }
.figures dd { margin: 0; font-size: 24px; line-height: 1.3; font-weight: 600; letter-spacing: -.01em; }
.figures dd.note { font-size: 13px; line-height: 1.45; font-weight: 400; letter-spacing: 0; color: var(--quiet);
  overflow-wrap: anywhere; }

/* What stands in the way, and what to know. */
.notices { list-style: none; margin: 0; padding: 0; display: grid; gap: 12px; }
.notices li { border-left: 4px solid currentColor; padding: 2px 0 2px 14px; }
.notices p { color: var(--text); }
.notices .kind { font-size: 13px; font-weight: 600; margin-right: 6px; }
.notices p.hint { color: var(--quiet); }

/* The time line. */
figure { margin: 0; }
.timeline { list-style: none; margin: 0; padding: 0; }
.timeline li, .chart { display: grid; grid-template-columns: 274px minmax(0, 1fr) 128px; column-gap: 14px; }
.timeline .who { min-width: 0; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; line-height: 26px;
  font-size: 13px; }
.timeline .who b { font-weight: 600; }
.timeline .took { text-align: right; line-height: 26px; font-size: 13px; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
svg { display: block; overflow: visible; }
.grid { stroke: var(--line); stroke-width: 1; }
.base { stroke: var(--quiet); stroke-width: 1; }
.bar { fill: var(--source); }
.bar.destination { fill: var(--destination); }
.bar.failed { fill: var(--bad); }
.bar.going-on { fill-opacity: .25; stroke: var(--left); stroke-dasharray: 4 3; }
line.press { stroke: var(--warn); stroke-width: 2; }
circle.press { fill: var(--warn); }
.tick { fill: var(--quiet); font-size: 12px; font-variant-numeric: tabular-nums; }
.label, .name { fill: var(--text); font-size: 12px; paint-order: stroke; stroke: var(--card); stroke-width: 3px;
  stroke-linejoin: round; }
.name { font-weight: 600; }
.area { fill-opacity: .22; }
.edge { fill: none; stroke-width: 1.8; }
.edge.dirty { stroke: var(--dirty); stroke-dasharray: 6 4; }
.link { stroke: var(--link); stroke-width: 1.5; stroke-dasharray: 2 4; }
.pointed { fill: transparent; }
.pointed:hover { fill: var(--text); fill-opacity: .07; }
.chart { margin-top: 22px; }
.legend { list-style: none; margin: 0; padding: 0; display: grid; gap: 10px; align-content: start; font-size: 13px; }
.legend li { display: grid; grid-template-columns: 22px 1fr; column-gap: 10px; line-height: 1.4; }
.legend svg { margin-top: 3px; }
.hosts-key { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 10px; font-size: 13px; color: var(--quiet); }
.hosts-key span { display: inline-flex; gap: 7px; align-items: center; }

/* Tables and lists. */
table { width: 100%; border-collapse: collapse; font-size: 14px; }
table + table, dl + table, figure + table { margin-top: 30px; }
caption { text-align: left; font-size: 14px; font-weight: 600; padding: 0 0 8px; }
th, td { text-align: left; vertical-align: top; padding: 7px 14px 7px 0; border-top: 1px solid var(--line);
  font-weight: 400; overflow-wrap: anywhere; }
th:last-child, td:last-child { padding-right: 0; }
thead th, thead td { border-top: 0; padding-top: 0; }
thead th { white-space: nowrap; color: var(--quiet); font-size: 13px; }
tbody th { font-weight: 600; }
.pairs tbody th { font-weight: 400; color: var(--quiet); width: 30%; }
.steps tbody .quiet { font-size: 13px; font-weight: 400; }
.steps tbody th { width: 25%; } .steps td { width: 33%; }
.steps ul { margin: 0; padding: 0 0 0 16px; }
.steps tbody th, .steps td:last-child, .passes td, .passes th, .disks tbody th, .disks td:nth-child(3),
  .disks td:nth-child(4), .checks tbody th, .checks td:nth-child(2), .checks td:nth-child(3) { white-space: nowrap; }
.steps td:last-child, .steps th:last-child { text-align: right; font-variant-numeric: tabular-nums; }
.passes td { font-variant-numeric: tabular-nums; }
.facts dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 12px 24px; margin: 0; }
.facts dt { font-size: 13px; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
details summary { cursor: pointer; color: var(--quiet); padding: 4px 0; }
details[open] summary { margin-bottom: 8px; }
details table { font-size: 13px; }
.command code { display: block; padding: 10px 14px; margin-bottom: 12px; white-space: pre-wrap; }
footer { color: var(--quiet); font-size: 13px; padding: 4px 4px 0; }
:focus-visible { outline: 2px solid var(--source); outline-offset: 2px; }
"""
_NARROW = """
  main { padding: 12px 10px 24px; }
  section, header { padding: 16px; border-radius: 8px; }
  h1 { font-size: 21px; }
  .figures { grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 14px 16px; }
  .figures dd { font-size: 20px; }
  .timeline li { grid-template-columns: minmax(0, 1fr) auto; margin-bottom: 4px; }
  .timeline .who { line-height: 20px; } .timeline .took { line-height: 20px; }
  .timeline svg { grid-column: 1 / -1; grid-row: 2; margin: -3px 0; }
  .timeline .axis > span { display: none; }
  .chart { grid-template-columns: minmax(0, 1fr); row-gap: 14px; }
  .chart .room { display: none; }
  svg.drawing { width: calc(100% - 66px); }
  .legend { grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
  .steps thead, .disks thead, .passes thead, .checks thead { position: absolute; width: 1px; height: 1px;
    overflow: hidden; clip-path: inset(50%); }
  .steps tr, .disks tr, .checks tr { display: block; border-top: 1px solid var(--line); padding: 8px 0; }
  .steps tbody th, .disks tbody th, .passes tbody th, .checks tbody th { display: block; border: 0; padding: 0;
    white-space: normal; }
  .steps td:nth-child(n), .disks td:nth-child(n), .checks td:nth-child(n) { display: block; position: relative;
    border: 0; padding: 2px 0 2px 104px; text-align: left; white-space: normal; }
  .steps tbody th, .steps td { width: auto; }
  .steps td.none:nth-child(n), .disks td.none:nth-child(n), .checks td.none:nth-child(n), .passes td.none {
    display: none; }
  td[data-head]::before { content: attr(data-head); color: var(--quiet); font-size: 13px; position: absolute; left: 0; }
  .passes tr { display: grid; grid-template-columns: 1.5fr 1fr 1fr; border-top: 1px solid var(--line); padding: 8px 0; }
  .passes { font-size: 13px; }
  .passes th { grid-column: 1 / -1; }
  .passes td { display: block; border: 0; padding: 2px 0; white-space: normal; }
  .passes td[data-head]::before { display: block; position: static; }
  .pairs td[data-head]::before { content: none; }
  .pairs { font-size: 13px; }
  .pairs th, .pairs td { padding-right: 8px; }
  .pairs tbody th { width: 27%; }
  .facts dl { grid-template-columns: minmax(0, 1fr); }
"""
_PAPER = """
  :root { color-scheme: light; }
  body { font-size: 10pt; background: none; }
  .timeline li, .chart { grid-template-columns: 232px minmax(0, 1fr) 92px; }
  .timeline .who { font-size: 8pt; } .timeline .took { font-size: 8pt; }
  table { font-size: 9pt; }
  main { max-width: none; padding: 0; }
  section, header { border: 0; border-radius: 0; padding: 0; margin: 0 0 18pt; }
  header { border-top: 3pt solid currentColor; padding-top: 8pt; }
  h2, caption, summary { break-after: avoid; }
  figure, tr, .notices li, .figures { break-inside: avoid; }
  svg, header, .notices li { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
"""


def _series() -> str:
    names = (*(f"disk-{number}" for number in range(1, 6)), "files", "memory")
    return "\n".join(
        f".area.{name} {{ fill: var(--{name}); }} .edge.{name} {{ stroke: var(--{name}); }}" for name in names)


STYLE = Markup(f"""
:root {{ color-scheme: light dark; {_LIGHT}}}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_DARK}}} }}
{_PAGE}{_series()}
@media screen and (max-width: 720px) {{{_NARROW}}}
@media print {{{_PAPER}}}
""")
