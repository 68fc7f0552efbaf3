// What a budget saves and what it costs: bytes, failures, catastrophes, time.

/** Round numbers of bytes for an axis: powers of two, or halves and quarters of them. */
function byteTicks([low, high]) {
  const parts = high / low > 8 ? [1] : high / low > 3 ? [1, 1.5] : [1, 1.25, 1.5, 1.75];
  const powers = d3.range(Math.floor(Math.log2(low)), Math.log2(high) + 1);
  const ticks = powers.flatMap((k) => parts.map((part) => part * 2 ** k)).filter((v) => v >= low && v <= high);
  return ticks.length ? ticks : [low, high];
}

/** Score over bytes, and the points that no other beats in both; those of controllers, which give bytes back, are left out. */
function paretoFront(experiment, variant, series, bin, width, open) {
  const sign = variant.higher ? 1 : -1;
  const rows = series.filter((one) => one.controller === "none").flatMap((one) => one.points.map((point) => {
    const cell = experiment.cell(point, bin);
    return cell && known(cell.mean) && cell.bytes > 0
      ? { ...one, x: cell.bytes, y: cell.mean, low: cell.low, high: cell.high, hollow: cell.degenerate > 0, label: pointName(point),
        point: point.index, bin, title: `${byteCount(cell.bytes)} of KV cache per request\n${cellSentence(experiment, variant, point, bin)}` }
      : null;
  }).filter(Boolean));
  if (!rows.length) return el("p", { class: "none-here" }, "No KV bytes were measured.");
  const [least, most] = d3.extent(rows, (r) => r.x), middle = Math.sqrt(least * most);
  let best = -Infinity;
  const front = d3.sort(rows, (r) => r.x, (r) => -sign * r.y).filter((r) => sign * r.y > best && ((best = sign * r.y), true));
  return clickable(Plot.plot({
    width, height: Math.min(440, Math.max(300, width * 0.42)), marginLeft: 48, marginRight: 30, marginBottom: 40, marginTop: 22,
    ariaLabel: "Score over KV bytes", color: { type: "identity" }, symbol: { type: "identity" },
    x: { type: "log", label: "KV bytes per request (mean, log scale) →", tickFormat: byteCount, ticks: byteTicks(d3.extent(rows, (r) => r.x)), grid: true, inset: 12 },
    y: { label: variant.metric, labelAnchor: "center", labelArrow: "none", grid: true, domain: scoreDomain(rows) },
    marks: [
      Plot.line(front, { x: "x", y: "y", curve: "step-after", stroke: "var(--muted)", strokeWidth: 1.5, strokeDasharray: "4 3" }),
      Plot.ruleX(rows, { x: "x", y1: "low", y2: "high", stroke: colourOf, strokeOpacity: 0.45, strokeWidth: 1.5 }),
      dots(rows, { r: 4.5 }),
      ...[true, false].map((right) => Plot.text(front.filter((r) => (r.x > middle) === right), {
        x: "x", y: "y", text: "label", dx: right ? -8 : 8, dy: -10, textAnchor: right ? "end" : "start", fontSize: 11, fill: "var(--ink)", stroke: "var(--surface)", strokeWidth: 3,
      })),
      tips(rows, {}),
    ],
  }), open);
}

const KINDS = ["looping", "non_termination", "amnesia", "silent_failure"];
// other colours than those of presses: Tol's muted ones, which colour-blind people can tell apart
const KIND_COLOURS = d3.range(8).map((i) => `var(--k${i})`);

const colourLegend = (names, colours) => el("ul", { class: "legend" }, names.map((name, i) =>
  el("li", {}, el("i", { class: "patch", style: { background: colours[i % colours.length] } }), kindName(name))));

/** Failures by kind: a panel per press, a bar per budget. */
function failureBars(experiment, variant, series, width, open) {
  const rows = series.flatMap((one) => one.points.flatMap((point) => {
    const cell = experiment.cell(point, ALL_BINS);
    return [...experiment.failures(point, ALL_BINS)].map(([kind, count]) => ({
      panel: one.name, x: askedLabel(point), kind, share: count / cell.requests, point: point.index, bin: ALL_BINS, show: "failed",
      title: `${pointName(point)}: ${count} of ${cell.requests} ${kindName(kind)}`,
    }));
  }));
  if (!rows.length) return el("p", { class: "none-here" }, "No request failed.");
  const kinds = [...new Set(rows.map((r) => r.kind))].sort();
  const names = series.map((s) => s.name).filter((name) => rows.some((r) => r.panel === name));
  const cut = grid(names, width), at = { fx: cut.fx, fy: cut.fy };
  const labels = budgetsOf(series.flatMap((s) => s.points)).map((b) => b.label);
  const plot = Plot.plot(panels(cut, width, 140, {
    ariaLabel: "Failure rate by kind, a panel per press",
    x: { type: "band", domain: labels, label: "KV budget", tickFormat: short, padding: 0.25 },
    y: { label: "share of requests", labelAnchor: "center", labelArrow: "none", grid: true, ticks: 3, tickFormat: "%", domain: [0, Math.max(0.05, d3.max(d3.rollups(rows, (v) => d3.sum(v, (r) => r.share), (r) => r.point), (d) => d[1]))] },
    marks: [
      outline(cut),
      Plot.barY(rows, { ...at, x: "x", y: "share", fill: (d) => KIND_COLOURS[kinds.indexOf(d.kind) % KIND_COLOURS.length], order: kinds, title: "title" }),
      titles(cut, new Map(series.map((s) => [s.name, s]))),
      Plot.tip(rows, Plot.pointerX(Plot.stackY({ ...at, x: "x", y: "share", title: "title", fill: "var(--surface)", stroke: "var(--line)" }))),
    ],
  }));
  return el("div", {}, colourLegend(kinds, KIND_COLOURS), clickable(plot, open));
}

/** Catastrophes beyond those of the full cache: a panel per press, a line per kind. */
function catastropheCurves(experiment, variant, series, width, open) {
  const rows = series.flatMap((one) => one.points.filter((p) => !(p.full && one.kind === "tokens")).flatMap((point) =>
    experiment.catastrophes(point, ALL_BINS).filter((c) => KINDS.includes(c.kind) && known(c.excess)).map((c) => ({
      panel: one.name, x: point.budget, y: c.excess, low: c.excess_low ?? c.excess, high: c.excess_high ?? c.excess, kind: c.kind,
      colour: KIND_COLOURS[KINDS.indexOf(c.kind)], point: point.index, bin: ALL_BINS,
      title: `${pointName(point)}: ${kindName(c.kind)} ${fixed(c.rate)}, excess ${signed(c.excess)} ${interval(c.excess_low, c.excess_high, signed)}, n = ${c.n}`,
    }))));
  if (!rows.length) return el("p", { class: "none-here" }, "No compressed point has a full cache beside it.");
  const names = series.map((s) => s.name).filter((name) => rows.some((r) => r.panel === name));
  const cut = grid(names, width), at = { fx: cut.fx, fy: cut.fy };
  const z = (d) => `${d.panel} ${d.kind}`;
  const plot = Plot.plot(panels(cut, width, 150, {
    ariaLabel: "Excess catastrophes over budget, a panel per press",
    x: budgetAxis(rows), y: { label: "excess", labelAnchor: "center", labelArrow: "none", grid: true, ticks: 4 },
    marks: [
      outline(cut), Plot.ruleY([0], { stroke: "var(--muted)" }),
      Plot.areaY(rows, { ...at, x: "x", y1: "low", y2: "high", z, fill: "colour", fillOpacity: 0.1 }),
      Plot.line(rows, { ...at, x: "x", y: "y", z, stroke: "colour", strokeWidth: 1.8 }),
      Plot.dot(rows, { ...at, x: "x", y: "y", fill: "colour", r: 2.8 }),
      titles(cut, new Map(series.map((s) => [s.name, s]))), tips(rows, at),
    ],
  }));
  return el("div", {}, colourLegend(KINDS.filter((k) => rows.some((r) => r.kind === k)), KINDS.filter((k) => rows.some((r) => r.kind === k)).map((k) => KIND_COLOURS[KINDS.indexOf(k)])), clickable(plot, open));
}

/** Times of requests that ran alone; null where nothing was measured. */
function latencyDots(experiment, variant, series, width) {
  const rows = series.flatMap((one) => one.points.map((point) => ({ one, point, cell: experiment.cell(point, ALL_BINS) })))
    .filter(({ cell }) => cell && cell.n_latency > 0)
    .map(({ one, point, cell }) => ({ ...one, ...cell, label: pointName(point) }));
  if (!rows.length) return null;
  const parts = [["ttft", "time to first token"], ["tpot", "time per token"], ["p50", "whole answer (p50, line to p95)"]];
  const columns = width > 760 ? 3 : 1, each = Math.floor(width / columns);
  const widest = Math.min(190, 20 + 6.4 * d3.max(rows, (r) => r.label.length));
  return el("div", { class: "beside" }, parts.map(([name, title], i) => {
    const named = columns === 1 || i === 0;
    return Plot.plot({
      width: columns === 1 ? each : Math.floor((width - widest) / 3 + (named ? widest : 0)), height: 56 + 17 * rows.length, marginLeft: named ? widest : 12, marginRight: 28, marginTop: 26,
      ariaLabel: title, color: { type: "identity" }, symbol: { type: "identity" },
      x: { label: null, grid: true, zero: true, ticks: 4, tickFormat: seconds, nice: true },
      y: { type: "band", domain: rows.map((r) => r.label), label: null, axis: named ? "left" : null, tickSize: 0 },
      marks: [
        Plot.text([title], { frameAnchor: "top-left", dy: -20, fontWeight: 600, fontSize: 12 }),
        name === "p50" ? Plot.ruleY(rows, { y: "label", x1: "p50", x2: "p95", stroke: colourOf, strokeWidth: 1.5 }) : null,
        Plot.dot(rows, { y: "label", x: name, fill: colourOf, symbol: symbolOf, r: 4 }),
        Plot.tip(rows, Plot.pointerY({ y: "label", x: name, title: (d) => `${d.label}: ${seconds(d[name])}${name === "p50" ? `, p95 ${seconds(d.p95)}` : ""}, ${plural(d.n_latency, "measurement")}`, fill: "var(--surface)", stroke: "var(--line)" })),
      ],
    });
  }));
}
