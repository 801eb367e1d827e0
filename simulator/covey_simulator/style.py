"""The report page's style sheet: system fonts, light and dark by the reader's choice, readable on paper and phones."""

from __future__ import annotations

STYLE = """
:root {
  --paper: #f6f7f9; --card: #ffffff; --text: #1b2230; --soft: #5a6474; --line: #e1e5ea;
  --good: #14713f; --good-bg: #e9f6ee; --bad: #ad2318; --bad-bg: #fdeeec; --open: #8a5a00; --open-bg: #fdf5e3;
  --marked: #fdf1e7;
  --ink: #5a6474; --grid: #e1e5ea; --fleet: #0b6e99; --bare: #c8500f; --calm: #76808f; --up: #0b6e99; --down: #c98a12;
  --stage0: #0b6e99; --stage1: #c98a12; --stage2: #3f9c7a; --stage3: #b9558f; --stage4: #7a6fd0; --stage5: #c8500f;
  --stage6: #7d8896; --stage7: #94b447;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #12151b; --card: #1a1f28; --text: #e6e9ee; --soft: #a2acba; --line: #2d3440;
    --good: #6fd39b; --good-bg: #16291f; --bad: #ff9a8d; --bad-bg: #331c1a; --open: #f0bd58; --open-bg: #2e2616;
    --marked: #33261b;
    --ink: #a2acba; --grid: #2d3440; --fleet: #52bde6; --bare: #ff9857; --calm: #98a3b2; --up: #52bde6; --down: #f0bd58;
    --stage0: #52bde6; --stage1: #f0bd58; --stage2: #6ac9a4; --stage3: #de86b9; --stage4: #a59cf0; --stage5: #ff9857;
    --stage6: #98a3b2; --stage7: #b9d573;
  }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 74rem; background: var(--paper); color: var(--text);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif;
}
h1 { margin: 0; font-size: 2.1rem; line-height: 1.2; letter-spacing: -0.02em; overflow-wrap: anywhere; }
h2 { margin: 0; font-size: 1.1rem; }
h3 { margin: 1rem 0 0.25rem; font-size: 0.95rem; }
.kicker { margin: 0; color: var(--soft); font-size: 0.85rem; }
.lead { margin: 0.5rem 0 1.5rem; color: var(--soft); max-width: 48rem; }
section, figure, .tiles > div {
  background: var(--card); border: 1px solid var(--line); border-radius: 0.75rem; margin: 0; padding: 1.1rem 1.25rem;
}
main > * { margin: 0 0 1.25rem; }
.verdict { border-left-width: 0.35rem; }
.verdict ul { margin: 0.35rem 0 0; padding-left: 1.2rem; }
.verdict .notes { color: var(--soft); font-size: 0.95rem; }
.verdict.passed { border-left-color: var(--good); background: var(--good-bg); }
.verdict.failed { border-left-color: var(--bad); background: var(--bad-bg); }
.verdict.open { border-left-color: var(--open); background: var(--open-bg); }
.open h2 { color: var(--open); }
.passed h2 { color: var(--good); }
.failed h2 { color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: 0.75rem; padding: 0; }
.tiles > div { padding: 0.8rem 1rem; }
dt { color: var(--soft); font-size: 0.85rem; }
dd { margin: 0; font-size: 1.6rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
dd small { display: block; font-size: 0.8rem; font-weight: 400; color: var(--soft); line-height: 1.4; }
.charts {
  display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.25rem;
  padding: 0; border: 0; background: none;
}
.charts .wide { grid-column: 1 / -1; }
figcaption p { margin: 0.1rem 0 0.5rem; color: var(--soft); font-size: 0.85rem; }
figure svg { display: block; width: 100%; height: auto; min-width: 26rem; }
figure.wide svg { min-width: 38rem; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; }
summary { cursor: pointer; color: var(--soft); font-size: 0.9rem; margin: 0.1rem 0 0.5rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.875rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
thead th { color: var(--soft); font-weight: 500; vertical-align: bottom; line-height: 1.3; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th { font-weight: 600; white-space: nowrap; }
.numeric th, .numeric td { text-align: right; overflow-wrap: normal; }
.numeric th, .numeric td { padding-inline: 0.4rem; }
.numeric tbody td { white-space: nowrap; }
.marked > * { background: var(--marked); }
.pair { display: grid; grid-template-columns: 3fr 2fr; gap: 1.25rem; align-items: start; }
@media (max-width: 48rem) {
  body { padding-top: 1.5rem; }
  .charts, .pair { grid-template-columns: minmax(0, 1fr); }
}
@media print {
  body { max-width: none; padding: 0; }
  section, figure { break-inside: avoid; }
}
"""
