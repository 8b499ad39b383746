"""How the page looks and the little it does with JavaScript; both are embedded, and allowed by their hashes alone."""

STYLE = """
:root{color-scheme:light dark;--paper:#faf9f5;--card:#fff;--ink:#20262a;--soft:#5c666c;--line:#e2dfd6;--kept:#1d7a66;
--dropped:#c2781c;--copy:#6a5fb0;--quarantined:#b8323f;--rest:#8b9298;--plain:#33566e;--shade:#f1efe8;--mark:#f6e3a8;
--good:#e5f3ec;--bad:#fbe3e4;
--arabic:"Noto Naskh Arabic","Amiri","Scheherazade New","Geeza Pro","Traditional Arabic","Noto Sans Arabic","Segoe UI",
Tahoma,serif;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Helvetica Neue",Arial,"Noto Sans Arabic",sans-serif}
@media (prefers-color-scheme:dark){:root{--paper:#14181b;--card:#1b2125;--ink:#e6e4de;--soft:#9aa5ab;--line:#323a3f;
--kept:#46b096;--dropped:#dd9c46;--copy:#9b91e0;--quarantined:#ea7480;--rest:#747d83;--plain:#7fa9c6;--shade:#20272b;
--mark:#5c4d16;--good:#17312a;--bad:#431d22}}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 var(--sans);-webkit-text-size-adjust:100%}
header,main,nav,footer{max-width:1120px;margin:0 auto;padding:0 28px}
header{padding-top:44px}
h1{font-size:clamp(1.6rem,4vw,2.35rem);line-height:1.15;letter-spacing:-.02em;margin:.1em 0 .25em;font-weight:680;
text-wrap:balance}
h2{font-size:1.4rem;letter-spacing:-.01em;margin:0 0 1rem;font-weight:660}
h3{font-size:1.05rem;margin:2rem 0 .6rem;font-weight:640}
p{margin:.5em 0}
.eyebrow{text-transform:uppercase;letter-spacing:.11em;font-size:.76rem;font-weight:650;color:var(--kept);margin:0}
.muted,.note,.about{color:var(--soft)}
.note{font-size:.88rem;max-width:86ch;margin-bottom:1.5em}
.unknown{color:var(--soft);font-style:italic}
code{font:.86em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;overflow-wrap:anywhere}
a{color:var(--kept)}
.skip{position:absolute;left:-999px}.skip:focus{left:8px;top:8px;background:var(--card);padding:6px 10px}
:focus-visible{outline:2px solid var(--kept);outline-offset:2px;border-radius:3px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:24px 0 16px}
.tile{background:var(--card);border:1px solid var(--line);border-top:3px solid var(--tile,var(--rest));border-radius:6px;
padding:11px 14px 12px}
.tile.kept{--tile:var(--kept)}.tile.copy{--tile:var(--copy)}.tile.dropped{--tile:var(--dropped)}
.tile.quarantined{--tile:var(--quarantined)}.tile.plain{--tile:var(--plain)}
.tile dt{font-size:.82rem;color:var(--soft)}
.tile dd{margin:0;font-size:1.45rem;font-weight:650;font-variant-numeric:tabular-nums;line-height:1.25}
.tile dd.muted{font-size:.82rem;font-weight:400;color:var(--soft)}
.banner{border-radius:6px;padding:13px 17px;border:1px solid;border-left-width:5px;margin:0 0 14px}
.banner p{margin:.2em 0}
.banner .sum{font-variant-numeric:tabular-nums}
.banner.good{background:var(--good);border-color:var(--kept)}
.banner.unsure{background:var(--shade);border-color:var(--dropped)}
.banner.bad{background:var(--bad);border-color:var(--quarantined);border-width:3px;border-left-width:12px;font-size:1.06rem}
.banner.bad strong{color:var(--quarantined);font-size:1.3rem;display:block}
.warnings{margin:0 0 14px;padding:10px 14px 10px 34px;border:1px solid var(--dropped);border-radius:6px}
.warnings li::marker{content:"⚠  ";color:var(--dropped)}
nav{position:sticky;top:0;background:var(--paper);z-index:2}
nav ul{display:flex;gap:2px 20px;list-style:none;margin:6px 0 0;padding:9px 0;overflow-x:auto;
border-bottom:1px solid var(--line);
font-size:.9rem;scrollbar-width:none}
nav a{text-decoration:none;color:var(--soft);white-space:nowrap}nav a:hover{color:var(--kept);text-decoration:underline}
section{padding:38px 0 6px;scroll-margin-top:28px}
section+section{border-top:1px solid var(--line);margin-top:30px}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:8px 34px;align-items:start}
figure{margin:0 0 18px;min-width:0}
figcaption{font-size:.9rem;font-weight:600;margin-bottom:8px}
.scroll{overflow-x:auto;margin:0 0 18px}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
caption{text-align:start;font-weight:600;font-size:.9rem;padding:0 0 6px}
th,td{padding:6px 14px 6px 0;text-align:start;border-bottom:1px solid var(--line);vertical-align:baseline;font-weight:400}
th:last-child,td:last-child{padding-right:2px}
thead th{color:var(--soft);font-size:.8rem;font-weight:550;border-bottom:1px solid var(--rest);vertical-align:bottom}
.number{text-align:end;white-space:nowrap}
td .passage p{margin:0}
td .passage{margin:0;font-size:1rem;line-height:1.6;min-width:300px;contain:none;
white-space:normal}
tr:has(.passage)>*{vertical-align:top}
.check{white-space:nowrap;font-weight:600}.check.good{color:var(--kept)}.check.unsure{color:var(--dropped)}
.check.bad{color:var(--quarantined)}
svg{display:block}
.chart{max-width:100%;height:auto;font:12.5px var(--sans);font-variant-numeric:tabular-nums}
.chart text{fill:var(--ink);white-space:pre;paint-order:stroke;stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
section>.chart{margin-bottom:18px}
.chart .muted{fill:var(--soft)}.chart .strong{font-weight:650}
.chart .grid{stroke:var(--line);stroke-width:1}.chart .axis{stroke:var(--rest);stroke-width:1}
.chart .mark{stroke:var(--quarantined);stroke-width:1.2;stroke-dasharray:4 3}
.flow .chart{min-width:820px;max-width:none;width:100%}
.kept,.c0{fill:var(--kept)}.dropped,.c2{fill:var(--dropped)}.copy,.c3{fill:var(--copy)}.quarantined{fill:var(--quarantined)}
.rest,.c5{fill:var(--rest)}.plain,.c1{fill:var(--plain)}.soft{fill:var(--rest)}.c4{fill:var(--quarantined)}
.bar{fill:var(--soft)}
.ribbon{opacity:.38}.ribbon:hover{opacity:.75}
.v0{fill:var(--line)}.v1{fill:var(--kept);opacity:.4}.v2{fill:var(--kept);opacity:.7}.v3{fill:var(--kept)}
.stack{margin:0 0 18px}
.narrow{max-width:680px}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:3px 20px;margin:8px 0 14px;padding:0;font-size:.86rem}
.legend li{display:flex;align-items:center;gap:7px}
.filter{display:flex;flex-wrap:wrap;gap:10px 16px;align-items:center;margin:14px 0;font-size:.9rem}
.filter[hidden]{display:none}
.filter input,.filter select,.filter button{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);
border-radius:5px;padding:5px 9px}
details{border:1px solid var(--line);border-radius:6px;background:var(--card);margin:0 0 8px;padding:0 14px}
details[open]{padding-bottom:10px}
summary{cursor:pointer;padding:9px 0;font-size:.93rem}
summary .muted{font-size:.86rem}
.reason{font-weight:620;margin:0 12px 0 4px}
.reason::before{content:"";display:inline-block;width:.62em;height:.62em;border-radius:50%;background:var(--dot,var(--rest));
margin-inline-end:.55em}
.reason.kept{--dot:var(--kept)}.reason.dropped{--dot:var(--dropped)}.reason.copy{--dot:var(--copy)}
.reason.quarantined{--dot:var(--quarantined)}.reason.plain{--dot:var(--plain)}
article{border-top:1px solid var(--line);padding:9px 0 6px}
.about{font-size:.82rem;overflow-wrap:anywhere;margin:0 0 4px}
.passage{font-family:var(--arabic);font-size:1.14rem;line-height:1.95;margin:0;white-space:pre-wrap;overflow-wrap:anywhere;
unicode-bidi:isolate;contain:content}
.passage p{margin:0 0 .45em}.passage p:dir(rtl){max-width:none}.passage p:dir(ltr){max-width:76ch}
.passage:lang(en){font-family:Georgia,"Noto Serif",serif;font-size:1rem;line-height:1.6}
pre.passage,pre.settings{font:.84rem/1.6 ui-monospace,SFMono-Regular,Menlo,Consolas,"Noto Sans Arabic",monospace;
white-space:pre-wrap;overflow-wrap:anywhere;
background:var(--shade);border-radius:4px;padding:9px 12px;margin:0 0 10px;max-width:none}
pre.settings{max-height:26em;overflow:auto}
mark{background:var(--mark);color:inherit;border-radius:3px;padding:0 2px}
footer{color:var(--soft);font-size:.84rem;padding-top:30px;padding-bottom:46px}
@media (max-width:640px){header,main,nav,footer{padding-left:16px;padding-right:16px}header{padding-top:26px}}
@media print{:root{--paper:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc;--shade:#f4f4f4;--kept:#1d7a66;--dropped:#c2781c;
--copy:#6a5fb0;--quarantined:#b8323f;--rest:#8b9298;--plain:#33566e;--good:#fff;--bad:#fff;--mark:#eee;color-scheme:light}
*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
body{font-size:10.5pt}nav,.filter,.skip{display:none!important}header,main,footer{max-width:none;padding-left:0;padding-right:0}
.scroll{overflow:visible}.flow .chart{min-width:0}
tr,article,figure,.tile,svg{break-inside:avoid}h2,h3,caption{break-after:avoid}
details::details-content{content-visibility:visible;display:block;height:auto}.columns{grid-template-columns:1fr 1fr}
section{padding-top:18px}
table{font-size:.78rem}thead .number{white-space:normal}th,td{padding-right:8px}}
""".strip()

SCRIPT = """
"use strict";
(function () {
  var box = document.querySelector(".filter");
  if (!box) return;
  var find = document.getElementById("find"), kind = document.getElementById("kind"), found = document.getElementById("found");
  var groups = Array.from(document.querySelectorAll("details[data-kind]"));
  box.hidden = false;
  function filter() {
    var words = find.value.trim().toLocaleLowerCase(), texts = 0;
    groups.forEach(function (group) {
      var named = group.querySelector("summary").textContent.toLocaleLowerCase().includes(words), any = named;
      group.querySelectorAll("article").forEach(function (article) {
        var fits = !words || named || article.textContent.toLocaleLowerCase().includes(words);
        article.hidden = !fits;
        any = any || fits;
      });
      group.hidden = (kind.value && group.dataset.kind !== kind.value) || !any;
      if (words && !group.hidden) group.open = true;
      if (!group.hidden) texts += group.querySelectorAll("article:not([hidden])").length;
    });
    found.textContent = words || kind.value ? texts + " texts" : "";
  }
  function all(open) { groups.forEach(function (group) { group.open = open; }); }
  find.addEventListener("input", filter);
  kind.addEventListener("change", filter);
  document.getElementById("open").addEventListener("click", function () { all(true); });
  document.getElementById("close").addEventListener("click", function () { all(false); });
})();
""".strip()
