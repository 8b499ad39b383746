"""How the pairs look; what the page shares with the report on a corpus is in `corpus/report/style.py`."""

STYLE = """
:root{--gone:#fbdcdc;--gone-ink:#7d1620;--come:#d3eede;--come-ink:#0d4b39}
@media (prefers-color-scheme:dark){:root{--gone:#5a2027;--gone-ink:#ffdfe1;--come:#16493a;--come-ink:#d8fbeb}}
.chart{overflow:visible}
.line{fill:none;stroke-width:2;stroke-linejoin:round}.line.c1{stroke:var(--plain)}.line.c0{stroke:var(--kept)}
.legend .c1,.legend .c0{stroke:none}
.pair{border:1px solid var(--line);border-radius:8px;background:var(--card);padding:12px 16px 10px;margin:0 0 14px}
.pair>header{all:unset;display:flex;flex-wrap:wrap;gap:3px 14px;align-items:baseline;font-size:.86rem;margin-bottom:6px}
.pair>header a{color:var(--soft);overflow-wrap:anywhere}
.badge{font-weight:650;white-space:nowrap}.badge::before{content:"";display:inline-block;width:.65em;height:.65em;
border-radius:50%;background:var(--dot,var(--rest));margin-inline-end:.45em}
.badge.rewritten{--dot:var(--kept)}.badge.unchanged{--dot:var(--plain)}.badge.refused{--dot:var(--quarantined)}
.badge.quarantined{--dot:var(--dropped)}
.why{margin:0 0 8px;padding:6px 12px;list-style:none;background:var(--bad);border-radius:5px;font-size:.86rem}
.why li{overflow-wrap:anywhere}
.sides{display:grid;grid-template-columns:1fr 1fr;gap:0 26px}
.sides h4{margin:0 0 2px;font-size:.76rem;font-weight:600;color:var(--soft)}
.sides>div{min-width:0}.sides>div+div{border-inline-start:1px solid var(--line);padding-inline-start:24px}
.sides .passage{font-size:1.06rem;line-height:1.85}
.sides .passage p{margin:0;min-height:1em;text-align:start}
del{background:var(--gone);color:var(--gone-ink);text-decoration:line-through;text-decoration-thickness:1px;
text-decoration-color:color-mix(in srgb,currentColor 55%,transparent);
border-radius:3px;padding:0 1px}
ins{background:var(--come);color:var(--come-ink);text-decoration:underline;text-decoration-thickness:1px;
text-underline-offset:.28em;border-radius:3px;padding:0 1px}
del.blank,ins.blank{text-decoration:none;padding:0 .28em}
.found{outline:2px solid var(--dropped);outline-offset:1px;border-radius:2px}
.rest-of-text{font:inherit;font-family:var(--sans);font-size:.8rem;color:var(--soft);background:var(--shade);
border:1px solid var(--line);border-radius:10px;padding:0 9px;margin:0 4px;cursor:pointer}
.pair details{margin:8px 0 0;font-size:.84rem;background:transparent}
.pair details summary{padding:5px 0}
.scores{display:flex;flex-wrap:wrap;gap:4px 16px;margin:0;padding:0 0 6px;list-style:none;font-variant-numeric:tabular-nums}
.scores .no{font-weight:650;color:var(--quarantined)}
.pager{display:flex;flex-wrap:wrap;gap:8px 12px;align-items:center;font-size:.9rem;margin:12px 0}
.pager button,.pager input{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:5px;
padding:5px 11px}.pager input{width:6em}
.pager button:disabled{opacity:.45}
button:not(:disabled){cursor:pointer}
.filter input[type=search]{min-width:15em;flex:1}
:focus-visible{outline:2px solid var(--plain);outline-offset:2px}
#working{min-height:1.4em;color:var(--soft);font-size:.88rem;display:block}
@media (max-width:760px){.sides{grid-template-columns:1fr}
.sides>div+div{border-inline-start:0;padding-inline-start:0;border-top:1px solid var(--line);margin-top:8px;padding-top:8px}}
@media print{:root{--gone:#fbdcdc;--gone-ink:#000;--come:#d3eede;--come-ink:#000}.pager{display:none!important}}
""".strip()
