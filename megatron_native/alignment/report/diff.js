/* Words of two texts compared. */
var LIMIT = 1500;
function tokens(text) {
  return text.match(/[\p{L}\p{M}\p{N}\u0640]+|\n|[^\S\n]+|[^]/gu) || [];
}

/* Myers' greedy comparison: [0 same | -1 gone | 1 come, tokens] runs; beyond LIMIT changes the middle is one change. */
function compare(a, b) {
  var start = 0, endA = a.length, endB = b.length;
  while (start < endA && start < endB && a[start] === b[start]) start++;
  while (endA > start && endB > start && a[endA - 1] === b[endB - 1]) { endA--; endB--; }
  var runs = [];
  function add(kind, list) {
    if (!list.length) return;
    var last = runs[runs.length - 1];
    if (last && last[0] === kind) last[1] = last[1].concat(list); else runs.push([kind, list]);
  }
  add(0, a.slice(0, start));
  middle(a.slice(start, endA), b.slice(start, endB)).forEach(function (one) { add(one[0], one[1]); });
  add(0, a.slice(endA));
  return joined(runs);
}

function middle(a, b) {
  var n = a.length, m = b.length, most = Math.min(n + m, LIMIT), v = new Int32Array(2 * most + 3), trace = [], d, k, x, y;
  if (!n || !m) return [[-1, a], [1, b]];
  var found = -1;
  for (d = 0; d <= most && found < 0; d++) {
    for (k = -d; k <= d; k += 2) {
      x = k === -d || (k !== d && v[most + k] < v[most + k + 2]) ? v[most + k + 2] : v[most + k] + 1;
      y = x - k;
      while (x < n && y < m && a[x] === b[y]) { x++; y++; }
      v[most + k + 1] = x;
      if (x >= n && y >= m) { found = d; break; }
    }
    trace.push(v.slice(most - d, most + d + 3));
  }
  if (found < 0) return [[-1, a], [1, b]];
  var steps = [];
  x = n; y = m;
  for (d = found; d > 0; d--) {
    var before = trace[d - 1], at = function (k) { return before[k + d]; };
    k = x - y;
    var down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    var from = down ? k + 1 : k - 1, fromX = at(from), fromY = fromX - from;
    for (var startX = down ? fromX : fromX + 1; x > startX; x--) steps.push([0, [a[x - 1]]]);
    y = x - k;
    if (down) steps.push([1, [b[y - 1]]]); else steps.push([-1, [a[x - 1]]]);
    x = fromX; y = fromY;
  }
  while (x > 0 && y > 0) { steps.push([0, [a[x - 1]]]); x--; y--; }
  return steps.reverse();
}

/* A blank alone between two changes is part of the change; in a change, what goes stands before what comes. */
function joined(runs) {
  var out = [], gone = [], come = [];
  function flush() {
    if (gone.length) out.push([-1, gone]);
    if (come.length) out.push([1, come]);
    gone = []; come = [];
  }
  runs.forEach(function (one, place) {
    var blank = one[0] === 0 && place > 0 && place < runs.length - 1 && one[1].every(function (t) { return /^[^\S\n]+$/.test(t); });
    if (one[0] < 0) gone = gone.concat(one[1]);
    else if (one[0] > 0) come = come.concat(one[1]);
    else if (blank && gone.length && come.length) { gone = gone.concat(one[1]); come = come.concat(one[1]); }
    else { flush(); out.push([0, one[1]]); }
  });
  flush();
  return out;
}
