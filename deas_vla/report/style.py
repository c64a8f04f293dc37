"""The look of report.html: one style sheet, light and dark, screen and phone."""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: #f4f5f7; --card: #ffffff; --ink: #1b2430; --soft: #5c6877; --rule: #e1e5ea; --track: #eceff3;
  --main: #2563c9; --base: #3d4856; --control: #929dab; --oracle: #b7791f;
  --good: #12805c; --bad: #c2502e; --demo: #7a55c7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10151c; --card: #19212b; --ink: #e8edf3; --soft: #9aa7b6; --rule: #2b3643; --track: #232d39;
    --main: #6ea3ff; --base: #c6d0dc; --control: #76838f; --oracle: #e0aa4e;
    --good: #3fc394; --bad: #f08a66; --demo: #b196f5;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 64px; }
h1 {
  font-size: clamp(1.6rem, 4.4vw, 2.5rem); line-height: 1.16; margin: 6px 0 12px;
  letter-spacing: -.02em; text-wrap: balance;
}
h2 { font-size: 1.3rem; margin: 48px 0 4px; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 0 0 4px; }
p { margin: 0 0 12px; max-width: 68ch; }
.kicker, .about { color: var(--soft); }
.kicker { font-weight: 600; font-size: .92rem; }
.about { margin: 0 0 16px; }
.detail-line { font-size: 1.08rem; color: var(--soft); }
.grid {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px;
  align-items: start;
}
.grid > :last-child:nth-child(odd) { grid-column: 1 / -1; }
.card {
  background: var(--card); border: 1px solid var(--rule); border-radius: 14px; padding: 18px 20px;
  min-width: 0;
}
.card p { font-size: .92rem; color: var(--soft); margin-bottom: 10px; }
.card p:last-child { margin-bottom: 0; }
.facts {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px;
  margin: 22px 0 24px;
}
.fact { background: var(--card); border: 1px solid var(--rule); border-radius: 14px; padding: 12px 16px; }
.fact strong {
  display: block; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.02em;
  color: var(--f, var(--ink));
}
.fact span { color: var(--soft); font-size: .86rem; display: block; line-height: 1.35; }
figure { margin: 0; }
video { display: block; max-width: 100%; margin: 0 auto; border-radius: 10px; background: #0c1015; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: 10px; max-width: 75ch; }
svg { display: block; width: 100%; max-width: 560px; height: auto; margin: 4px auto 0; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg text.label { font-size: 12px; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .axis { stroke: var(--control); stroke-width: 1; }
svg path { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
svg path.dashed { stroke-dasharray: 5 5; stroke-width: 1.6; }
svg path.faint { stroke-width: 1; opacity: .18; }
svg path.band { stroke: none; fill: var(--c); opacity: .17; }
svg .whisker { stroke: var(--c); stroke-width: 2; opacity: .5; }
svg .dot { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
svg .speck { fill: var(--c); opacity: .38; }
svg .column { fill: var(--c); opacity: .8; }
.legend {
  display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .84rem; color: var(--soft);
  margin: 8px 0 10px;
}
.legend i {
  display: inline-block; width: 12px; height: 4px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle;
}
.row { display: grid; grid-template-columns: 1fr auto; gap: 2px 12px; padding: 9px 0 7px; }
.row .name { font-weight: 600; line-height: 1.3; }
.row .name small { display: block; font-weight: 400; color: var(--soft); font-size: .84rem; }
.row .value {
  font-weight: 700; font-size: 1.12rem; color: var(--c); font-variant-numeric: tabular-nums;
  white-space: nowrap;
}
.row .detail {
  grid-column: 1 / -1; font-size: .82rem; color: var(--soft); font-variant-numeric: tabular-nums;
}
.track {
  grid-column: 1 / -1; position: relative; height: 14px; border-radius: 7px;
  background: var(--track);
}
.track i {
  position: absolute; top: 3px; height: 8px; min-width: 2px; border-radius: 4px;
  background: var(--c); opacity: .38;
}
.track u {
  position: absolute; top: 0; width: 14px; height: 14px; margin-left: -7px; border-radius: 50%;
  background: var(--c); border: 2px solid var(--card);
}
.track b {
  position: absolute; top: -4px; bottom: -4px; width: 0; border-left: 2px dashed var(--control);
  margin-left: -1px;
}
.scale { position: relative; height: 1.3em; font-size: .78rem; color: var(--soft); margin-top: 6px; }
.scale span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.scale span:first-child { transform: none; } .scale span:last-child { transform: translateX(-100%); }
.bar { display: grid; grid-template-columns: 1fr auto; font-size: .92rem; padding: 5px 0; }
.bar i { grid-column: 1 / -1; height: 6px; border-radius: 3px; background: var(--main); }
.num { font-variant-numeric: tabular-nums; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: .88rem; }
td {
  border-top: 1px solid var(--rule); padding: 5px 10px 5px 0; vertical-align: top;
  overflow-wrap: anywhere;
}
tr:first-child td { border-top: 0; }
td:first-child { color: var(--soft); white-space: nowrap; }
pre {
  margin: 0; padding: 12px 14px; border-radius: 10px; background: var(--track);
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .86rem;
}
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
details {
  margin-top: 10px; } summary { cursor: pointer; font-weight: 600; font-size: .94rem;
  padding: 4px 0;
}
ul { margin: 0; padding-left: 20px; font-size: .94rem; } li { margin-bottom: 6px; }
@media (max-width: 520px) {
  main { padding: 22px 12px 40px; }
  .card { padding: 15px 14px; }
  .facts { grid-template-columns: 1fr 1fr; gap: 8px; }
}
"""
