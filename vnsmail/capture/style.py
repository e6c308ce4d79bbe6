"""The style sheet of the page of a proof: light and dark, wide and narrow. Pure."""

STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#16202c;--soft:#5b6878;
--line:#dfe4ea;--good:#12805c;--good-bg:#e3f5ee;--bad:#c22f3d;--bad-bg:#fdeaec;
--warn:#96690a;--warn-bg:#fdf3dc;--ns:#2f6fde;--alias:#8a4fd6;--machine:#c2740c;
--remote:#50708f;--code:#eef1f5}
@media (prefers-color-scheme:dark){:root{--bg:#10151c;--card:#182029;--ink:#e8edf3;
--soft:#9aa8b8;--line:#2a3542;--good:#4cc79a;--good-bg:#12352a;--bad:#ff7a85;
--bad-bg:#40191f;--warn:#e3b452;--warn-bg:#3a2d10;--ns:#6ea0ff;--alias:#b78bf5;
--machine:#f0a94e;--remote:#8fb0cf;--code:#222d39}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1100px;margin:0 auto;padding:24px 20px 40px}
header{display:flex;gap:20px;align-items:center;padding:20px 24px;border-radius:14px;
border:1px solid var(--line);background:var(--card)}
header h1{margin:0;font-size:1.45rem;line-height:1.2}
header p{margin:4px 0 0;color:var(--soft)}
header .verdict{margin:0;padding:10px 18px;border-radius:10px;font-weight:700;
font-size:1.3rem;letter-spacing:.06em}
.pass .verdict{background:var(--good-bg);color:var(--good)}
.fail .verdict{background:var(--bad-bg);color:var(--bad)}
.facts{display:flex;flex-wrap:wrap;gap:6px 28px;margin:16px 4px;font-size:.88rem}
.facts div{min-width:0}.facts dt{display:inline;color:var(--soft)}
.facts dt::after{content:" "}.facts dd{display:inline;margin:0;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;
padding:12px 16px}
.card b{display:block;font-size:1.5rem;line-height:1.2;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:.85rem}
.card.good b{color:var(--good)}.card.bad b{color:var(--bad)}
section{margin-top:28px}
h2{font-size:1.08rem;margin:0 0 10px}
.picture .scroll,.scroll{overflow-x:auto;background:var(--card);
border:1px solid var(--line);border-radius:12px}
.picture .scroll{padding:10px}
svg{display:block;width:100%;min-width:700px;height:auto;
font:13px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
svg text{fill:var(--ink)}svg .small{fill:var(--soft);font-size:11px}
.edge{fill:none;stroke-opacity:.5}.edge.good{stroke:var(--good)}
.edge.bad{stroke:var(--bad);stroke-opacity:.95;stroke-dasharray:7 4}
.node rect{fill:var(--bg);stroke:var(--line)}
.node .mark{fill:var(--remote);stroke:none}
.node.namespace .mark{fill:var(--ns)}.node.alias .mark{fill:var(--alias)}
.node.machine .mark{fill:var(--machine)}.node.bad .mark{fill:var(--bad)}
.node.bad rect{stroke:var(--bad)}
.bar{fill:var(--good)}.bar.wrong{fill:var(--bad)}.bar.attempt{fill:var(--warn)}
.bar.older{fill:var(--soft)}
.tick,.rule{stroke:var(--line);stroke-width:1}.tick{stroke-dasharray:2 3}
table{border-collapse:collapse;width:100%;font-size:.88rem}
th{text-align:left;color:var(--soft);font-weight:600;padding:9px 12px;white-space:nowrap;
border-bottom:1px solid var(--line)}
td{padding:8px 12px;border-top:1px solid var(--line);vertical-align:top}
tbody tr:first-child td{border-top:0}
tr.wrong td{background:var(--bad-bg)}
td b{font-weight:600}
code,time{font-family:ui-monospace,"SF Mono",Menlo,"DejaVu Sans Mono",monospace;
font-size:.92em;white-space:nowrap}
code.no{color:var(--bad);font-weight:700}code.yes{color:inherit}
small,.quiet,.more{color:var(--soft)}.more{margin:8px 4px}
.why{margin:4px 0 0;color:var(--bad);font-size:.92em;min-width:240px}
.badge{display:inline-block;padding:1px 9px;border-radius:99px;font-size:.85em;
font-weight:600;white-space:nowrap;background:var(--code)}
.badge.pass,.badge.agree,.badge.mail{background:var(--good-bg);color:var(--good)}
.badge.fail,.badge.dissent,.badge.wrong{background:var(--bad-bg);color:var(--bad)}
tr.wrong .badge{outline:1px solid currentColor}
.badge.no-mail,.badge.off,.badge.attempt{background:var(--warn-bg);color:var(--warn)}
.problems{background:var(--bad-bg);border-radius:12px;padding:14px 20px}
.problems h2{color:var(--bad)}
ul{margin:0;padding-left:20px}li{margin:3px 0;overflow-wrap:anywhere}
.remarks li{color:var(--soft)}
summary{cursor:pointer;margin-bottom:10px;color:var(--soft)}
footer{margin-top:32px;color:var(--soft);font-size:.85rem}
@media (max-width:600px){main{padding:14px 12px 30px}header{flex-direction:column;
align-items:flex-start;gap:12px;padding:16px}.cards{grid-template-columns:1fr 1fr}
td,th{padding:7px 9px}}
@media print{body{background:#fff}details{display:block}}
"""
