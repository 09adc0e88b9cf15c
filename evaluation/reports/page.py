"""The page of a report: its frame and its typography."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

STYLE = """
:root { --ink: #222; --soft: #666; --line: #ddd; --good: #00664d; --bad: #a63c00; }
* { box-sizing: border-box; }
body { font: 15px/1.5 "Source Sans 3", "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
  color: var(--ink); background: #fff; max-width: 60rem; margin: 2.5rem auto 4rem;
  padding: 0 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; font-weight: 600; margin: 0 0 .6rem; }
h2 { font-size: 1.1rem; font-weight: 600; margin: 2.2rem 0 .6rem; padding-top: .7rem;
  border-top: 1px solid var(--line); }
p { margin: 0 0 .8rem; max-width: 44rem; }
p.lead { font-size: 1.15rem; line-height: 1.45; margin-bottom: 1rem; }
p.note, figcaption { color: var(--soft); font-size: .86rem; margin: .4rem 0 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th { text-align: left; font-weight: 600; color: var(--soft); vertical-align: bottom; }
th, td { padding: .28rem 1.1rem .28rem 0; border-bottom: 1px solid #eee; }
tr:first-child th { border-bottom: 1px solid #999; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: .78rem; font-weight: 400;
  line-height: 1.3; }
td { vertical-align: top; }
tr.strong td { font-weight: 600; }
td.pass { color: var(--good); font-weight: 600; }
td.pass::before { content: "\\2713  "; }
td.fail { color: var(--bad); font-weight: 600; }
td.fail::before { content: "\\2717  "; }
table.facts td { color: var(--soft); font-size: .85rem; vertical-align: top;
  overflow-wrap: anywhere; }
table.facts td:first-child { white-space: nowrap; }
figure { margin: 0 0 1rem; }
img { max-width: 100%; height: auto; }
ul.thumbnails { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); }
ul.thumbnails img { width: 100%; display: block; background: #000; }
ul.thumbnails span { font-size: .8rem; color: var(--soft); display: block; margin-top: .3rem;
  overflow-wrap: anywhere; white-space: pre-line; }
@media print {
  body { max-width: none; margin: 0; padding: 0; font-size: 10pt; }
  section, figure, tr { break-inside: avoid; }
  h2 { break-after: avoid; }
  .wide { overflow: visible; }
}
"""
