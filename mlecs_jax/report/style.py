"""The page's style sheet and its one small script, as strings: the page carries both inside.

Colours are Okabe and Ito's, which stay apart for colour-blind readers: blue is devices, vermilion
is the server or an error, green is real data. Dashes, shapes and words repeat what colours say.
"""

STYLE = """
:root {
  --paper: #fcfcfa; --raised: #f3f3ee; --ink: #1b1d20; --muted: #5b6068; --rule: #dcdcd4;
  --grid: #e6e6df; --axis: #9a9d9f; --dev: #0067a6; --srv: #c2410c; --ref: #767b82;
  --ceil: #6f4e9b; --up: #0067a6; --down: #2b8a78; --right: #0067a6; --wrong: #d0530f;
  --on-fill: #fff; --real: #00694e; --sim: #ffc53d; --on-sim: #231a00; --faint: .14;
  --on-strong: #1b1d20;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --raised: #1d2026; --ink: #e9eaec; --muted: #a2a8b1; --rule: #343942;
    --grid: #272b32; --axis: #6c727c; --dev: #62b5ee; --srv: #f5914f; --ref: #949aa4;
    --ceil: #c3a3ee; --up: #62b5ee; --down: #5cc7b1; --right: #62b5ee; --wrong: #f5914f;
    --on-fill: #0c1014; --real: #3ecf9f; --sim: #ffc53d; --on-sim: #231a00;
    --faint: .24; --on-strong: #0c1014;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
main { max-width: 1180px; margin: 0 auto; padding: 28px clamp(16px, 4vw, 40px) 56px; }
h1, h2, h3, p, figure, dl, dd, ul { margin: 0; padding: 0; }
ul { list-style: none; }
h1 { font-size: clamp(30px, 5.4vw, 46px); line-height: 1.1; letter-spacing: -.02em;
  font-weight: 680; margin: 14px 0 22px; }
h1 span { color: var(--muted); font-weight: 400; white-space: pre-wrap; }
h1 .which { display: inline-block; white-space: normal; }
h2 { font-size: 23px; letter-spacing: -.01em; line-height: 1.25; font-weight: 650; }
h3 { font-size: 15px; line-height: 1.35; font-weight: 650; }
h3 small { font-size: 14px; font-weight: 400; color: var(--muted); margin-left: 8px; }
a { color: inherit; }
:focus-visible { outline: 2px solid var(--dev); outline-offset: 3px; }

.banner { background: var(--sim); color: var(--on-sim); padding: 10px clamp(16px, 4vw, 40px);
  border-bottom: 8px solid; text-align: center; font-size: 15px;
  border-image: repeating-linear-gradient(-45deg, #231a00 0 10px, #ffc53d 10px 20px) 8; }
.banner strong { text-transform: uppercase; letter-spacing: .06em; margin-right: 4px; }
.strip { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center; }
.badge { font-size: 13px; font-weight: 700; letter-spacing: .07em; text-transform: uppercase;
  padding: 4px 12px; border-radius: 99px; border: 2px solid; white-space: nowrap; }
.badge.real { color: var(--real); }
.badge.real::before { content: "✓ "; }
.badge.simulated, .badge.none { background: var(--sim); color: var(--on-sim);
  border-color: var(--on-sim); }
.badge.simulated::before, .badge.none::before { content: "⚠ "; }
.badge.counted { color: var(--muted); }
.state { color: var(--muted); font-size: 15px; }

.facts { display: flex; flex-wrap: wrap; gap: 12px 30px; }
.facts dt { font-size: 13px; color: var(--muted); }
.facts dd { font-size: 15px; font-weight: 550; }
.facts.stacked { display: block; }
.facts.stacked div { padding: 9px 0; border-bottom: 1px solid var(--rule); }

.tiles { display: grid; gap: 0; margin: 30px 0 0; border-top: 2px solid var(--ink);
  border-bottom: 1px solid var(--rule);
  grid-template-columns: minmax(0, 1.5fr) repeat(auto-fit, minmax(0, 1fr)); grid-auto-flow: column;
  grid-auto-columns: minmax(0, 1fr); }
.tile { padding: 16px 22px 18px; border-left: 1px solid var(--rule); }
.tile:first-child { padding-left: 0; border-left: 0; }
.tile h2 { font-size: 14px; font-weight: 600; letter-spacing: 0; color: var(--muted); }
.tile b { font-size: 40px; line-height: 1.15; letter-spacing: -.03em; font-weight: 680; }
.tile.dev b { color: var(--dev); } .tile.srv b { color: var(--srv); }
.tile p span { font-size: 14px; color: var(--muted); display: block; }
.tile .small { font-size: 14px; color: var(--muted); line-height: 1.45; }
.tile svg { max-width: 300px; margin: 8px 0 2px -4px; }

nav { display: flex; gap: 4px 22px; flex-wrap: wrap; padding: 14px 0 0; font-size: 15px; }
nav a { text-underline-offset: 3px; text-decoration-color: var(--axis); padding: 4px 0; }
nav a:hover { text-decoration-color: currentColor; }
section { margin-top: 44px; padding-top: 18px; border-top: 1px solid var(--rule); }
.lead { color: var(--muted); max-width: 68ch; margin-top: 4px; font-size: 15px; }
header .lead { margin: -10px 0 16px; }
.grid-of-panels { display: grid; column-gap: 32px; margin-top: 22px;
  grid-template-columns: repeat(auto-fill, minmax(min(318px, 100%), 1fr)); }
/* Captions, drawings and read-outs of neighbours stand on common lines. */
.grid-of-panels > * { grid-row: span 3; padding-bottom: 20px; }
.grid-of-panels > figure { display: grid; grid-template-rows: subgrid; }
figure { min-width: 0; }
.duo { display: flex; column-gap: 72px; flex-wrap: wrap; align-items: flex-start; }
.duo > :last-child { flex: 1; }
figure > svg { margin-top: 6px; max-width: 460px; }
figure.wide, figure.beside { margin-top: 26px; }
figure.beside { display: grid; grid-template-columns: minmax(0, 410px) minmax(0, 1fr);
  column-gap: 44px; min-width: min(560px, 100%); }
figure.beside figcaption { grid-column: 1 / -1; }
figcaption { display: block; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; color: var(--muted);
  margin-top: 3px; }
.legend li { display: flex; align-items: center; gap: 6px; }
.swatch { width: 22px; height: 10px; flex: none; }
.readout, .note { font-size: 13px; color: var(--muted); line-height: 1.45; }
.readout { min-height: 2.9em; color: var(--ink); }
.note { margin-top: 6px; max-width: 60ch; }

svg { display: block; width: 100%; height: auto; overflow: visible; }
svg[width] { width: auto; max-width: none; }
svg text { fill: var(--ink); font-size: 12px; }
.tick { fill: var(--muted); } .axis-title { fill: var(--muted); }
.row { font-size: 12.5px; }
.middle { text-anchor: middle; } .end { text-anchor: end; }
.grid { stroke: var(--grid); } .axis { stroke: var(--axis); }
.dev { --c: var(--dev); } .srv { --c: var(--srv); } .ref { --c: var(--ref); }
.ceil { --c: var(--ceil); } .up { --c: var(--up); } .down { --c: var(--down); }
.line { fill: none; stroke: var(--c); stroke-width: 2.4; stroke-linejoin: round;
  stroke-linecap: round; }
.line.val { stroke-width: 1.8; stroke-dasharray: 5 4; stroke-linecap: butt; }
.line.thin { stroke-width: 1; opacity: .65; }
.line.ref { stroke-width: 1.5; }
.band { fill: var(--c); fill-opacity: var(--faint); stroke: none; }
.band.inner { fill-opacity: .32; }
.whisker { stroke: var(--c); stroke-width: 8; stroke-opacity: .22; }
.dot { fill: var(--c); } .bar { fill: var(--c); }
.mean { stroke: var(--c); stroke-width: 2.5; }
.cell { fill: var(--dev); } .cell.none { fill: var(--raised); stroke: var(--axis);
  stroke-width: .8; }
.cell.half { fill-opacity: .6; }
.hit rect { fill: transparent; } .hit line { stroke: none; }
.hit:hover line, .hit.read line { stroke: var(--ink); stroke-opacity: .55; }

.scroll { overflow-x: auto; max-width: 100%; }
.scroll.tall { max-height: 560px; overflow-y: auto; margin-top: 16px; }
.labelled { display: flex; gap: 12px; margin-top: 12px; }
.labelled .scroll { flex: 1; min-width: 0; padding-bottom: 6px; }
.row-labels { flex: none; font-size: 13px; max-width: min(170px, 40vw); white-space: nowrap; }
.row-labels li { display: flex; gap: 10px; justify-content: space-between; align-items: center; }
.row-labels span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.row-labels b { font-weight: 400; color: var(--muted); }

.matrices { display: grid; gap: 26px 32px; margin-top: 22px;
  grid-template-columns: repeat(auto-fill, minmax(min(var(--width), 100%), 1fr)); }
table { border-collapse: collapse; font-size: 14px; }
.confusion { margin-top: 6px; }
.confusion th { font-weight: 400; font-size: 12.5px; color: var(--muted); padding: 2px 6px 4px; }
.confusion { white-space: nowrap; }
.confusion thead th { max-width: 84px; padding: 2px 3px 4px; white-space: normal;
  overflow-wrap: normal; line-height: 1.2; vertical-align: bottom; }
.confusion tbody th { text-align: right; padding-right: 8px; max-width: 140px; }
.confusion th span { display: block; overflow: hidden; text-overflow: ellipsis; }
.confusion td { min-width: 54px; height: 36px; text-align: center; padding: 0 5px;
  border: 2px solid var(--paper); }
.confusion tbody td { background:
  color-mix(in srgb, var(--k) calc(8% + 92% * var(--s)), var(--paper)); }
.right { --k: var(--right); } .wrong { --k: var(--wrong); }
.confusion td.wrong[style="--s:0.000"] { background: var(--raised); color: var(--muted); }
.confusion td.strong { color: var(--on-strong); font-weight: 650; }
.confusion td.full { color: var(--on-fill); }
/* Of two names at the head of a row the last stays: two would cover each other. */
.confusion tbody th, .devices tbody th:last-of-type { position: sticky; left: 0;
  background: var(--paper); }
.confusion td.lost, .confusion th.lost { border-left: 12px solid var(--paper); }
.confusion th.lost { max-width: 110px; font-style: italic; }

.devices { width: 100%; }
.devices th, .devices td { padding: 6px 12px 6px 0; text-align: left; vertical-align: middle;
  border-bottom: 1px solid var(--rule); overflow-wrap: normal; }
.devices td { white-space: nowrap; }
.devices thead th { position: sticky; top: 0; background: var(--paper); font-size: 13px;
  font-weight: 550; color: var(--muted); vertical-align: bottom; z-index: 1; }
.devices .n { text-align: right; }
.devices tbody th { font-weight: 600; max-width: min(22em, 40vw); overflow-wrap: break-word; }
.meter { min-width: 92px; background: linear-gradient(var(--dev), var(--dev)) no-repeat left
  calc(100% - 3px) / calc(var(--v) * (100% - 12px)) 3px; }
.chip { display: inline-block; font-size: 13px; padding: 0 8px; margin: 1px 4px 1px 0;
  background: var(--raised); border-radius: 4px; }
/* As wide as its words, not as a phone: a table that is squeezed breaks every name. */
.figures { width: max-content; margin-top: 6px; }
.figures th, .figures td { padding: 4px 14px 4px 0; }
.figures thead th { min-width: 64px; max-width: 7.5em; overflow-wrap: break-word; }
.figures thead th:not(.n):not(:has(+ :not(.n))) { left: 0; z-index: 2; }
.figures a { color: inherit; text-decoration-color: var(--axis); text-underline-offset: 3px;
  text-decoration-thickness: 1px; }
.figures tr.begins > * { border-top: 2px solid var(--axis); }
.figures .quiet { color: var(--muted); font-style: italic; font-weight: 400; }
.figures .up { color: var(--dev); } .figures .down { color: var(--srv); }
.heat td { padding: 6px 10px; border: 2px solid var(--paper); background:
  color-mix(in srgb, var(--k) calc(55% * var(--s)), var(--paper)); }
.gain { --k: var(--right); } .loss { --k: var(--wrong); }
.runs td, .captions td { white-space: normal; }
.captions td:not(.n) + td:not(.n) { min-width: 15em; }
.seed { margin-right: 14px; white-space: nowrap; }
.sentences li { margin: 6px 0; max-width: 90ch; }
.sentences { padding-left: 20px; list-style: disc; }
.failures { color: var(--srv); }
details { margin-top: 20px; }
#setup .facts { margin-top: 12px; }
summary { cursor: pointer; font-weight: 550; padding: 6px 0; }
.config { margin-top: 6px; font-size: 13px; }
.config th, .config td, code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas,
  "DejaVu Sans Mono", monospace; }
.config th, .config td { text-align: left; font-weight: 400; padding: 3px 18px 3px 0;
  border-bottom: 1px solid var(--rule); vertical-align: top; }
.config th { color: var(--muted); }
code { font-size: .92em; }
footer { margin-top: 52px; padding-top: 14px; border-top: 1px solid var(--rule); font-size: 14px;
  color: var(--muted); }

@media (max-width: 860px) {
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); grid-auto-flow: row; }
  .tile:nth-child(odd) { padding-left: 0; border-left: 0; }
  .tile:nth-child(n + 3) { border-top: 1px solid var(--rule); }
  figure.beside { display: block; }
}
@media (max-width: 520px) {
  main { padding-top: 18px; }
  .tile { padding: 14px 14px 16px 0; }
  .tile:first-child { grid-column: 1 / -1; border-bottom: 1px solid var(--rule); }
  .tile:nth-child(n + 2) { border-top: 0; border-left: 0; padding-left: 0; }
  .tile:nth-child(4) { border-top: 1px solid var(--rule); grid-column: 1 / -1; }
  .tile b { font-size: 34px; }
  .facts:not(.stacked) { display: grid; grid-template-columns: repeat(3, auto); gap: 10px 18px;
    justify-content: space-between; }
  .facts .long { grid-column: 1 / -1; }
  section { margin-top: 40px; }
  .confusion td { min-width: 44px; padding: 0 3px; }
  .confusion th.lost { max-width: 62px; }
}
@media print {
  @page { margin: 13mm; }
  @page sideways { size: landscape; }
  :root { --paper: #fff; --raised: #f3f3ee; --ink: #000; --muted: #444; --rule: #ccc;
    --grid: #e2e2e2; --axis: #888; --dev: #0067a6; --srv: #c2410c; --ref: #767b82;
    --ceil: #6f4e9b; --up: #0067a6; --down: #2b8a78; --right: #0067a6; --wrong: #d0530f;
    --on-fill: #fff; --real: #00694e; --faint: .14;
    --on-strong: #000; }
  body { font-size: 11pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  nav, .hit { display: none; }
  h1 { font-size: 30px; margin: 8px 0 12px; }
  .banner { border: 2px solid; margin-bottom: 12px; }
  .tiles { grid-template-columns: minmax(0, 1.4fr) repeat(3, minmax(0, 1fr)); margin-top: 16px; }
  .tile, .tile:nth-child(odd) { padding: 10px 14px; border-left: 1px solid var(--rule);
    border-top: 0; }
  .tile:first-child { padding-left: 0; border-left: 0; }
  .tile b { font-size: 26px; } .tile .small, .tile p span { font-size: 12px; }
  .state { font-size: 13px; }
  section { margin-top: 20px; padding-top: 12px; }
  figure, .tiles, tr { break-inside: avoid; }
  h2, .lead { break-after: avoid; break-inside: avoid; max-width: none; }
  .grid-of-panels { grid-template-columns: repeat(2, 1fr); }
  .scroll, .scroll.tall { overflow: visible; max-height: none; }
  /* A table is as wide as the page: smaller type for many columns, then words that break. */
  .devices { width: 100%; font-size: 9.5pt; }
  .figures { table-layout: fixed;
    font-size: clamp(5pt, var(--room, 70pt) / var(--columns, 8), 9.5pt); }
  .sideways { page: sideways; --room: 100pt; }
  :root .devices tr > * { position: static; white-space: normal; min-width: 0; max-width: 20em;
    padding: 3px 4px 3px 0; font-size: inherit; overflow-wrap: break-word; }
  .figures thead th:not(.n) { width: 10em; }
  #devices tbody th, #devices .chip { overflow-wrap: anywhere; }
  svg[width] { width: 100%; max-width: 100%; }
  .labelled svg[width] { width: auto; max-width: 100%; height: var(--height); }
  .readout { min-height: 0; }
  figure.beside > svg { max-width: 330px; }
}
"""

# Shows beneath a chart what its invisible columns carry in <title>: the one under the pointer, the
# one that was touched last, or one by one with arrow keys. A title becomes its column's label,
# which is read aloud as well but not shown by browsers a second time.
SCRIPT = """
for (const figure of document.querySelectorAll('figure')) {
  const out = figure.querySelector('.readout'), hits = [...figure.querySelectorAll('.hit')];
  if (!out || !hits.length) continue;
  const chart = hits[0].closest('svg'), rest = out.textContent;
  let now = hits.length - 1;
  const show = (i) => {
    hits[now].classList.remove('read');
    now = Math.min(Math.max(i, 0), hits.length - 1);
    hits[now].classList.add('read');
    out.textContent = hits[now].getAttribute('aria-label');
  };
  const clear = () => { hits[now].classList.remove('read'); out.textContent = rest; };
  hits.forEach((hit, i) => {
    const title = hit.querySelector('title');
    hit.setAttribute('role', 'img');
    hit.setAttribute('aria-label', title.textContent);
    title.remove();
    hit.addEventListener('pointerenter', () => show(i));
  });
  out.setAttribute('aria-live', 'polite');
  chart.tabIndex = 0;
  chart.addEventListener('focus', () => show(now));
  chart.addEventListener('blur', clear);
  chart.addEventListener('keydown', (event) => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (step) { show(now + step); event.preventDefault(); }
  });
  // A finger leaves when it is lifted, and then one reads.
  figure.addEventListener('pointerleave', (event) => {
    if (event.pointerType === 'mouse') clear();
  });
}
"""
