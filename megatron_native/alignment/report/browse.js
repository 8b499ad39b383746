/* The pairs of the page: unpacked, filtered by the address, shown a few at a time. Texts become textContent alone. */
var AROUND = 40;
var index = null, chunks = {}, order = [], run = 0;
var $ = function (id) { return document.getElementById(id); };

function make(name, attributes, children) {
  var element = document.createElement(name);
  Object.keys(attributes || {}).forEach(function (key) {
    if (attributes[key] !== null && attributes[key] !== undefined) element.setAttribute(key, attributes[key]);
  });
  (Array.isArray(children) ? children : children === undefined || children === null ? [] : [children]).forEach(function (child) {
    element.append(child);
  });
  return element;
}

async function unpack(id) {
  var packed = atob(JSON.parse($(id).textContent)), bytes = new Uint8Array(packed.length);
  for (var i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  var stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

function chunk(number) {
  if (!chunks[number]) chunks[number] = unpack("chunk-" + number);
  return chunks[number];
}

async function row(place) {
  return (await chunk(Math.floor(place / index.chunk)))[place % index.chunk];
}

function visible(text) {
  return text.replace(/[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ufffe\uffff\u0080-\u009f\ud800-\udfff]/gu, function (c) {
    return "\u27e8" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + "\u27e9";
  }).replace(/[\x00-\x08\x0b-\x1f]/g, function (c) { return String.fromCharCode(0x2400 + c.charCodeAt(0)); })
    .replace(/\x7f/g, "\u2421");
}

/* Lines without letters go as the whole text does. */
function rightToLeft(text, whole) {
  var arabic = (text.match(/[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]/g) || []).length;
  var other = (text.match(/[A-Za-z\u00c0-\u024f\u0370-\u052f]/g) || []).length;
  return arabic + other ? arabic >= other : whole !== undefined && rightToLeft(whole);
}

/* One side as paragraphs, each in the direction of its letters; changed words marked, long unchanged stretches folded. */
function side(runs, own, whole, search, expand) {
  var paragraphs = [[]], plain = [""];
  function put(node, text) { paragraphs[paragraphs.length - 1].push(node); plain[plain.length - 1] += text; }
  function brk() { paragraphs.push([]); plain.push(""); }
  function write(list, kind) {
    var text = "";
    function flush() {
      if (!text) return;
      var blank = /^\s*$/.test(text);
      if (kind) put(make(kind < 0 ? "del" : "ins", blank ? {"class": "blank"} : {}, visible(text)), text);
      else searched(text, search).forEach(function (node) { put(node, ""); }), plain[plain.length - 1] += text;
      text = "";
    }
    list.forEach(function (token) {
      if (token !== "\n") { text += token; return; }
      flush();
      if (kind) put(make(kind < 0 ? "del" : "ins", {}, "\u23ce"), "");
      brk();
    });
    flush();
  }
  runs.forEach(function (one, place) {
    if (one[0] !== 0) { if (one[0] === own) write(one[1], own); return; }
    var list = one[1], head = place ? AROUND : 0, tail = place < runs.length - 1 ? AROUND : 0;
    if (runs.length === 1) head = 4 * AROUND;
    if (whole || list.length <= head + tail + 2 * AROUND) { write(list, 0); return; }
    write(list.slice(0, head), 0);
    var words = list.slice(head, list.length - tail).filter(function (t) { return /[\p{L}\p{N}]/u.test(t); }).length;
    var more = make("button", {type: "button", "class": "rest-of-text"}, "\u2026 " + words.toLocaleString("en") + " words the same \u2026");
    more.addEventListener("click", expand);
    put(more, "");
    write(list.slice(list.length - tail), 0);
  });
  var text = plain.join(" ");
  return make("div", {"class": "passage", lang: ""}, paragraphs.map(function (nodes, n) {
    return make("p", {dir: rightToLeft(plain[n], text) ? "rtl" : "ltr"}, nodes);
  }));
}

function searched(text, search) {
  if (!search) return [document.createTextNode(visible(text))];
  var nodes = [], last = 0, found, global = new RegExp(search.source, search.flags + "g");
  while ((found = global.exec(text)) && found[0]) {
    nodes.push(document.createTextNode(visible(text.slice(last, found.index))));
    nodes.push(make("mark", {"class": "found"}, visible(found[0])));
    last = found.index + found[0].length;
  }
  nodes.push(document.createTextNode(visible(text.slice(last))));
  return nodes;
}

function card(place, data, search) {
  var state = index.states[index.state[place]], origin = data[1], text = data[2] === 0 ? origin : data[2];
  var ratio = text === null || !origin.length ? "" : " \u00b7 " + Math.round(100 * text.length / origin.length) + " % of its length";
  var parts = [make("header", {}, [
    make("span", {"class": "badge " + state}, state),
    make("a", {href: "#pair=" + (place + 1)}, make("bdi", {}, visible(data[0]))),
    make("span", {"class": "muted"}, make("bdi", {}, visible(index.sources[index.source[place]]))),
    make("span", {"class": "muted"}, origin.length.toLocaleString("en") + " characters" + ratio)
  ])];
  if (data[3].length) parts.push(make("ul", {"class": "why"}, data[3].map(function (reason) {
    return make("li", {}, make("bdi", {}, visible(reason)));
  })));
  var sides = make("div", {"class": "sides"});
  function draw(whole) {
    var runs = text === null ? [[0, tokens(origin)]] : compare(tokens(origin), tokens(text));
    var expand = function () { draw(true); };
    var named = state === "refused" ? "What was refused; the original stays" : text === origin ? "Rewrite: no change" : "Rewrite";
    sides.replaceChildren(
      make("div", {}, [make("h4", {}, "Original"), side(runs, -1, whole, search, expand)]),
      make("div", {}, [make("h4", {}, named), text === null ? make("p", {"class": "muted"}, "There is none.") : side(runs, 1, whole, search, expand)])
    );
  }
  draw(false);
  parts.push(sides);
  var scores = data[4].map(function (score, gate) {
    return score && make("li", score[1] ? {} : {"class": "no"}, index.gates[gate] + " " + score[0] + (score[1] ? "" : " \u2717 refused"));
  }).filter(Boolean);
  if (scores.length) parts.push(make("details", {}, [make("summary", {}, "Scores of the gates"), make("ul", {"class": "scores"}, scores)]));
  if (data[5]) parts.push(make("p", {"class": "about"}, "Grades: " + GRADES.map(function (name, n) { return name + " " + data[5][n]; }).join(" \u00b7 ")));
  return make("article", {"class": "pair"}, parts);
}

var GRADES = ["format", "accuracy", "moderation", "advertisement", "detail"];
var CLASSES = [["\u0627", "\u0622\u0623\u0625\u0671\u0672\u0673\u0675"], ["\u064a", "\u0649\u0626\u06cc\u06d0\u06ce"],
  ["\u0647", "\u0629\u06c0\u06c2\u06be\u06c1\u06d5"], ["\u0648", "\u0624"], ["\u0643", "\u06a9\u06aa\u06ac"]];
var DROPPED = "[\\u0610-\\u061a\\u0621\\u0640\\u064b-\\u065f\\u0670\\u06d6-\\u06ed]*";

/* A phrase as a pattern that knows no vowel signs, hamzas, ta marbuta or kind of digit. */
function pattern(phrase) {
  var out = "", parted = false;
  Array.from(phrase.normalize("NFC").trim()).forEach(function (c) {
    if (/[\u0610-\u061a\u0621\u0640\u064b-\u065f\u0670\u06d6-\u06ed]/.test(c)) return;
    if (!/[\p{L}\p{N}]/u.test(c)) { parted = out !== ""; return; }
    var set = CLASSES.find(function (one) { return (one[0] + one[1]).includes(c); });
    var digit = "\u0660\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668\u0669".indexOf(c);
    if (digit < 0 && /[0-9]/.test(c)) digit = +c;
    if (parted) { out += "[^\\p{L}\\p{N}]+" + DROPPED; parted = false; }
    out += (set ? "[" + set[0] + set[1] + "]" : digit >= 0 ? "[" + digit + String.fromCharCode(0x660 + digit) + String.fromCharCode(0x6f0 + digit) + "]" : c) + DROPPED;
  });
  return out ? new RegExp(out, "iu") : null;
}

function wanted() {
  var given = new URLSearchParams(location.hash.slice(1));
  return {state: given.get("state") || "", reason: given.get("reason") || "", source: given.get("source") || "",
    q: given.get("q") || "", where: given.get("where") || "", sort: given.get("sort") || "",
    page: Math.max(1, parseInt(given.get("page"), 10) || 1), size: Math.min(200, Math.max(1, parseInt(given.get("size"), 10) || 10)),
    pair: parseInt(given.get("pair"), 10) || 0};
}

function go(change) {
  var now = wanted(), out = new URLSearchParams();
  if (!("page" in change)) now.page = 1;
  now.pair = 0;
  Object.assign(now, change);
  Object.keys(now).forEach(function (key) {
    if (now[key] && !(key === "page" && now[key] === 1) && !(key === "size" && now[key] === 10)) out.set(key, now[key]);
  });
  var hash = "#" + (out.toString() || "all=1");
  if (hash === location.hash) update(); else location.hash = hash;
}

async function select(now, mine) {
  if (now.pair) return now.pair <= index.state.length ? [now.pair - 1] : [];
  var state = index.states.indexOf(now.state), kind = index.kinds.indexOf(now.reason), source = index.sources.indexOf(now.source);
  var places = [], search = pattern(now.q);
  for (var i = 0; i < index.state.length; i++) {
    if (now.state && index.state[i] !== state) continue;
    if (now.reason && !index.kind[i].includes(kind)) continue;
    if (now.source && index.source[i] !== source) continue;
    places.push(i);
  }
  if (search) {
    var hits = [], paused = performance.now();
    for (var n = 0; n < places.length; n++) {
      var data = await row(places[n]);
      var texts = {"": [data[1], data[2] || ""], original: [data[1]], rewrite: [data[2] === 0 ? data[1] : data[2] || ""],
        reasons: data[3].concat([data[0]])}[now.where] || [];
      if (texts.some(function (text) { return search.test(text); })) hits.push(places[n]);
      if (performance.now() - paused > 40) {
        $("working").textContent = "searching: " + n.toLocaleString("en") + " of " + places.length.toLocaleString("en") + " pairs";
        await new Promise(function (done) { setTimeout(done, 0); });
        if (mine !== run) return null;
        paused = performance.now();
      }
    }
    places = hits;
  }
  var ratio = function (i) { return index.after[i] / Math.max(1, index.before[i]); };
  if (now.sort === "shortest") places.sort(function (a, b) { return ratio(a) - ratio(b); });
  if (now.sort === "longest") places.sort(function (a, b) { return ratio(b) - ratio(a); });
  if (now.sort === "length") places.sort(function (a, b) { return index.before[b] - index.before[a]; });
  return places;
}

var key = null;
async function update() {
  var now = wanted(), mine = ++run, started = performance.now();
  ["state", "reason", "source", "q", "where", "sort"].forEach(function (name) {
    if (document.activeElement !== $(name) || name !== "q") $(name).value = now[name];
  });
  var own = JSON.stringify([now.state, now.reason, now.source, now.q, now.q && now.where, now.sort, now.pair]);
  if (own !== key) {
    var places = await select(now, mine);
    if (places === null || mine !== run) return;
    order = places; key = own;
  }
  var pages = Math.max(1, Math.ceil(order.length / now.size)), page = Math.min(now.page, pages);
  var shown = order.slice((page - 1) * now.size, page * now.size), search = now.where === "reasons" ? null : pattern(now.q);
  var rows = await Promise.all(shown.map(row));
  if (mine !== run) return;
  $("pairs-shown").replaceChildren.apply($("pairs-shown"), rows.map(function (data, n) { return card(shown[n], data, search); }));
  if (!rows.length) $("pairs-shown").append(make("p", {"class": "note"}, "No pair fits. Clear a filter."));
  $("found").textContent = order.length.toLocaleString("en") + " of " + index.state.length.toLocaleString("en") + " pairs";
  document.querySelectorAll(".pager").forEach(function (pager) {
    pager.hidden = pages < 2;
    pager.querySelector("[name=page]").value = page;
    pager.querySelector("[name=page]").max = pages;
    pager.querySelector(".pages").textContent = "of " + pages.toLocaleString("en");
    pager.querySelector("[name=back]").disabled = page < 2;
    pager.querySelector("[name=on]").disabled = page >= pages;
  });
  $("working").textContent = "";
  $("found").dataset.view = location.hash;
  $("found").dataset.milliseconds = Math.round(performance.now() - started);
  $("found").dataset.since = Math.round(performance.now());
}

function fill(id, names, counts) {
  names.forEach(function (name, n) {
    $(id).append(make("option", {value: name}, visible(name) + " (" + counts[n].toLocaleString("en") + ")"));
  });
}

function counted(column, names) {
  var counts = names.map(function () { return 0; });
  column.forEach(function (one) { (Array.isArray(one) ? one : [one]).forEach(function (n) { counts[n]++; }); });
  return counts;
}

async function begin() {
  if (!$("index")) return;
  if (!window.DecompressionStream) { $("working").textContent = "This browser can't unpack the pairs; a newer one can."; return; }
  index = await unpack("index");
  fill("state", index.states, counted(index.state, index.states));
  fill("reason", index.kinds, counted(index.kind, index.kinds));
  fill("source", index.sources.slice(0, 300), counted(index.source, index.sources));
  document.querySelector(".filter").hidden = false;
  ["state", "reason", "source", "where", "sort"].forEach(function (name) {
    $(name).addEventListener("change", function () { var change = {}; change[name] = $(name).value; go(change); });
  });
  var typing = 0;
  $("q").addEventListener("input", function () { clearTimeout(typing); typing = setTimeout(function () { go({q: $("q").value}); }, 300); });
  $("clear").addEventListener("click", function () { go({state: "", reason: "", source: "", q: "", where: "", sort: ""}); });
  document.querySelectorAll(".pager").forEach(function (pager, place) {
    function turn(page) {
      go({page: page});
      if (place) $("pairs").scrollIntoView();
    }
    pager.querySelector("[name=back]").addEventListener("click", function () { turn(Math.max(1, wanted().page - 1)); });
    pager.querySelector("[name=on]").addEventListener("click", function () { turn(wanted().page + 1); });
    pager.querySelector("[name=page]").addEventListener("change", function (event) { turn(Math.max(1, parseInt(event.target.value, 10) || 1)); });
  });
  window.addEventListener("hashchange", function () { if (!location.hash || location.hash.includes("=")) update(); });
  await update();
  if (location.hash.includes("=")) $("pairs").scrollIntoView();
}
begin();
