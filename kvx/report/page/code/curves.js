// Curves over budgets and over lengths, in small multiples; a press looks the same in all of them.

/** A symbol of straight lines through `corners`, which span about 2 by 2. */
const polygon = (corners) => ({
  draw(context, size) {
    const r = Math.sqrt(size / Math.PI) * 1.15;
    corners.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x * r, y * r));
    context.closePath();
  },
});
const DOWN = polygon([[-1, -0.75], [1, -0.75], [0, 1]]);
const TIMES = polygon([[0, -0.4], [0.5, -0.9], [0.9, -0.5], [0.4, 0], [0.9, 0.5], [0.5, 0.9], [0, 0.4], [-0.5, 0.9], [-0.9, 0.5], [-0.4, 0], [-0.9, -0.5], [-0.5, -0.9]]);
// in the order of kvx/analyze/figures.py: o s ^ D v P X
const SYMBOLS = ["circle", "square", "triangle", "diamond", DOWN, "cross", TIMES];
const colourOf = (one) => `var(--s${one.colour})`;
const symbolOf = (one) => SYMBOLS[one.marker % SYMBOLS.length];
// the first seven presses have solid lines; of points with a controller the dashes are short
const DASHES = [null, "6 3", "8 2 2 2", "10 3", "4 4", "6 2 2 2 2 2", "12 4"];
const dashOf = (one) => (one.dashed ? "3 3" : DASHES[one.dash % DASHES.length]);

/** The sign of a press beside its name: its colour and marker. */
function swatch(one) {
  return Plot.plot({
    width: 22, height: 12, margin: 0, axis: null, x: { domain: [0, 1] }, y: { domain: [0, 1] },
    className: "kvx-swatch", ariaHidden: "true",
    marks: [
      Plot.link([0], { x1: 0.05, x2: 0.95, y1: 0.5, y2: 0.5, stroke: colourOf(one), strokeWidth: 2, strokeDasharray: dashOf(one) }),
      Plot.dot([0], { x: 0.5, y: 0.5, r: 3.4, symbol: symbolOf(one), fill: colourOf(one) }),
    ],
  });
}

/** Panels in rows: each name's column and row, for as many columns as `width` has room for. */
function grid(names, width, least = 230) {
  const rows = Math.ceil(names.length / Math.max(1, Math.floor(width / least)));
  const columns = Math.max(1, Math.ceil(names.length / rows));  // so that the last row is not short
  const place = new Map(names.map((name, i) => [name, [i % columns, Math.floor(i / columns)]]));
  return { columns, rows, fx: (d) => place.get(d.panel)[0], fy: (d) => place.get(d.panel)[1], place };
}

/** Options that every plot of panels shares. */
function panels(cut, width, height, options) {
  return {
    width, height: cut.rows * height + 40, marginLeft: 52, marginRight: 14, marginBottom: 34, marginTop: 18,
    fx: { axis: null, padding: 0.12 }, fy: { axis: null, padding: 0.22 }, color: { type: "identity" }, symbol: { type: "identity" },
    ...options,
  };
}

const titles = (cut, series) => Plot.text([...cut.place.keys()], {
  fx: (name) => cut.place.get(name)[0], fy: (name) => cut.place.get(name)[1], frameAnchor: "top-left", dy: -16,
  text: (name) => name, fontWeight: 600, fontSize: 12, fill: (name) => { const one = series.get(name); return one ? colourOf(one) : "var(--ink)"; }, textAnchor: "start",
});

const outline = (cut) => Plot.frame({ stroke: "var(--line)" });

/** The rows of curves over budgets in one bin; the full cache, a fraction of 1, is not `joined` to budgets in tokens. */
function budgetRows(experiment, variant, series, bin) {
  return series.flatMap((one) => one.points.map((point) => {
    const cell = experiment.cell(point, bin);
    return cell && known(cell.mean) && known(point.budget)
      ? { ...one, panel: one.name, x: point.budget, y: cell.mean, low: cell.low ?? cell.mean, high: cell.high ?? cell.mean,
        hollow: cell.degenerate > 0, joined: !(point.full && one.kind === "tokens"), point: point.index, bin, title: cellSentence(experiment, variant, point, bin) }
      : null;
  }).filter(Boolean));
}

const budgetAxis = (rows) => {
  const values = [...new Set(rows.map((r) => r.x))].sort(d3.descending);
  const ticks = [];
  for (const v of values) if (!ticks.length || ticks.at(-1) / v > 1.5) ticks.push(v);
  return { type: "log", label: "KV budget (log scale)", ticks, tickFormat: (v) => short(`${Number(v.toPrecision(2))}`), domain: d3.extent(rows, (r) => r.x), inset: 8 };
};

const dots = (rows, extra) => Plot.dot(rows, {
  x: "x", y: "y", symbol: symbolOf, stroke: colourOf, fill: (d) => (d.hollow ? "var(--surface)" : colourOf(d)), r: 3.6, ...extra,
});

const tips = (rows, extra) => Plot.tip(rows, Plot.pointer({
  x: "x", y: "y", title: "title", lineWidth: 34, fill: "var(--surface)", stroke: "var(--line)", maxRadius: 40, ...extra,
}));

/** A plot whose marks open examples when clicked. */
function clickable(plot, open) {
  plot.addEventListener("click", () => {
    if (plot.value && known(plot.value.point)) open({ point: plot.value.point, bin: plot.value.bin });
  });
  return plot;
}

const fitOf = (experiment, variant, one, bin) => {
  const number = experiment.variants.indexOf(variant);
  return experiment.fits.filter((f) => f.variant === number && f.bin === bin && f.press === one.press && f.controller === one.controller && f.seed === one.seed && f.budget_kind === one.kind && known(f.midpoint));
};

/** Points of the fitted curves over budgets (`dose_response`): a logistic rise from `guess` that meets the full cache's score at 1. */
function fittedRows(experiment, variant, series, bin) {
  return series.flatMap((one) => fitOf(experiment, variant, one, bin).flatMap((fit) => {
    const steepness = (2 * Math.log(9)) / Math.max(fit.width, 1e-6);  // `width` is from 10% to 90% of the rise, in doublings
    const rise = (budget) => 1 / (1 + Math.exp(-steepness * (Math.log2(budget) - Math.log2(fit.midpoint))));
    const twin = one.points.find((p) => known(p.twin))?.twin;
    const full = known(twin) ? experiment.cell(experiment.points[twin], bin)?.mean : null;
    if (!known(full)) return [];
    return d3.range(0, 1.0001, 0.04).map((share) => {
      const x = fit.lowest_budget ** (1 - share);  // evenly from the lowest budget to 1 on a log scale
      return { ...one, panel: one.name, x, y: fit.guess + (full - fit.guess) * rise(x) / rise(1) };
    });
  }));
}

/** The budget from which on 95% of the full cache's score is kept, with its interval, as a bar at the foot of a panel; without a mark in it where any budget between two fits. */
function thresholdRows(experiment, variant, series, bin) {
  return series.flatMap((one) => fitOf(experiment, variant, one, bin).filter((f) => told(f, "b95")).map((f) => ({
    ...one, panel: one.name, x: f.b95, ...endsOf(f, "b95"), title: `${one.name}: ${thresholdSentence(f, "b95")}`,
  })));
}

/** Whether the budget that keeps a share is told: as a number, or as the two budgets between which the curve falls. */
const told = (fit, share) => (fit[`${share}_state`] === "reached" && known(fit[share])) || fit[`${share}_state`] === "between_budgets";

const endsOf = (fit, share) => ({ low: Math.max(fit[`${share}_ci_low`] ?? fit[share], fit.lowest_budget), high: fit[`${share}_ci_high`] ?? fit[share] });

function thresholdSentence(fit, share) {
  const { low, high } = endsOf(fit, share);
  const where = known(fit[share]) ? `budget ${fixed(fit[share])} ${interval(fit[`${share}_ci_low`], fit[`${share}_ci_high`])}` : `a budget between ${fixed(high)} and ${fixed(low)}`;
  return `keeps ${share.slice(1)}% of the score down to ${where}`;
}

/** One panel per press, the others behind it in grey. */
function curvesByPress(experiment, variant, series, bin, width, open) {
  const rows = budgetRows(experiment, variant, series, bin);
  const names = series.map((s) => s.name).filter((name) => rows.some((r) => r.panel === name));
  const cut = grid(names, width), at = { fx: cut.fx, fy: cut.fy };
  const own = new Map(series.map((s) => [s.name, s]));
  const joined = rows.filter((r) => r.joined);
  const fitted = fittedRows(experiment, variant, series, bin), kept = thresholdRows(experiment, variant, series, bin);
  return clickable(Plot.plot(panels(cut, width, 170, {
    ariaLabel: `Score over budget, a panel per press`,
    x: budgetAxis(rows), y: { label: variant.metric, labelAnchor: "center", labelArrow: "none", domain: scoreDomain(rows), grid: true, ticks: 4 },
    marks: [
      outline(cut),
      Plot.line(joined, { ...at, facet: "exclude", x: "x", y: "y", z: "panel", stroke: "var(--faint)", strokeWidth: 1 }),
      Plot.areaY(joined, { ...at, x: "x", y1: "low", y2: "high", z: "panel", fill: colourOf, fillOpacity: 0.18 }),
      Plot.line(joined, { ...at, x: "x", y: "y", z: "panel", stroke: colourOf, strokeWidth: 2 }),
      Plot.line(fitted, { ...at, x: "x", y: "y", z: "panel", stroke: "var(--ink)", strokeWidth: 1, strokeDasharray: "3 2" }),
      Plot.ruleY(kept, { ...at, y: 0.03, x1: "low", x2: "high", stroke: colourOf, strokeWidth: 5, strokeOpacity: 0.35 }),
      Plot.ruleX(kept.filter((k) => known(k.x)), { ...at, x: "x", y1: 0, y2: 0.07, stroke: colourOf, strokeWidth: 3 }),
      dots(rows, at), titles(cut, own), tips(rows, at),
    ],
  })), open);
}

/** One panel per length bin (and kind of budget, where there are both), all presses in it with their names at the cheap end. */
function curvesByLength(experiment, variant, series, width, open) {
  const bins = [ALL_BINS, ...variant.bins.map((b) => b.bin)];
  const kinds = [...new Set(series.map((one) => one.kind))].sort();
  const panelOf = (bin, kind) => `${binName(variant, bin)}${kinds.length > 1 && kind === "tokens" ? " (budgets in tokens)" : ""}`;
  const rows = bins.flatMap((bin) => budgetRows(experiment, variant, series, bin).map((r) => ({ ...r, name: r.panel, panel: panelOf(bin, r.kind) })));
  const joined = rows.filter((r) => r.joined);
  const cut = grid(bins.flatMap((bin) => kinds.map((kind) => panelOf(bin, kind))), width, 300), at = { fx: cut.fx, fy: cut.fy };
  const lines = { ...at, z: "name" };
  return clickable(Plot.plot(panels(cut, width, 200, {
    ariaLabel: "Score over budget, a panel per context length", marginRight: 30,
    x: budgetAxis(rows), y: { label: variant.metric, labelAnchor: "center", labelArrow: "none", domain: scoreDomain(rows), grid: true, ticks: 4 },
    marks: [
      outline(cut),
      Plot.areaY(joined, { ...lines, x: "x", y1: "low", y2: "high", fill: colourOf, fillOpacity: 0.08 }),
      Plot.line(joined, { ...lines, x: "x", y: "low", stroke: colourOf, strokeOpacity: 0.35, strokeWidth: 0.8 }),
      Plot.line(joined, { ...lines, x: "x", y: "high", stroke: colourOf, strokeOpacity: 0.35, strokeWidth: 0.8 }),
      Plot.line(joined, { ...lines, x: "x", y: "y", stroke: colourOf, strokeWidth: 2 }),
      dots(rows, at), titles(cut, new Map()), tips(rows, at),
    ],
  })), open);
}

const scoreDomain = (rows) => [Math.min(0, d3.min(rows, (r) => r.low) ?? 0), Math.max(1, d3.max(rows, (r) => r.high) ?? 1)];

/** Which budget each length needs: 95% and 50% of the full cache's score, with their intervals; null without fits. */
function neededBudgets(experiment, variant, series, width) {
  const middle = middles(variant);
  const rows = ["b95", "b50"].flatMap((share) => series.flatMap((one) => variant.bins.flatMap(({ bin }) =>
    fitOf(experiment, variant, one, bin).filter((f) => told(f, share)).map((f) => ({
      ...one, panel: one.name, share, x: middle.get(bin), y: f[share], floor: f.lowest_budget, ...endsOf(f, share),
      title: `${one.name}, ${binName(variant, bin)} tokens: ${thresholdSentence(f, share)}`,
    })))));
  if (!rows.length) return null;
  const names = series.map((s) => s.name).filter((name) => rows.some((r) => r.panel === name));
  const cut = grid(names, width), at = { fx: cut.fx, fy: cut.fy };
  const least = Math.min(d3.min(rows, (r) => r.floor), d3.min(rows, (r) => r.low));
  const z = (d) => `${d.panel} ${d.share}`, dash = (rows_) => ({ ...at, x: "x", y: "y", z, stroke: colourOf, strokeWidth: 2, ...rows_ });
  const lines = d3.group(rows, (r) => r.share);
  return Plot.plot(panels(cut, width, 170, {
    ariaLabel: "Budget needed over context length, a panel per press",
    x: lengthAxis(middle), y: { type: "log", label: "budget needed", labelAnchor: "center", labelArrow: "none", domain: [least, 1], grid: true, ticks: [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].filter((v) => v >= least), tickFormat: (v) => short(`${v}`) },
    marks: [
      outline(cut),
      Plot.areaY(rows, { ...at, x: "x", y1: "low", y2: "high", z, fill: colourOf, fillOpacity: 0.15 }),
      Plot.ruleX(rows.filter((r) => !known(r.y)), { ...at, x: "x", y1: "low", y2: "high", stroke: colourOf, strokeWidth: 4, strokeOpacity: 0.35 }),
      Plot.line(lines.get("b95") ?? [], dash({})),
      Plot.line(lines.get("b50") ?? [], dash({ strokeDasharray: "3 3" })),
      Plot.dot(rows, { ...at, x: "x", y: "y", fill: (d) => (d.share === "b95" ? colourOf(d) : "var(--surface)"), stroke: colourOf, r: 3, symbol: symbolOf }),
      titles(cut, new Map(series.map((s) => [s.name, s]))), tips(rows.filter((r) => known(r.y)), at),
    ],
  }));
}

const middles = (variant) => new Map(variant.bins.map((b) => [b.bin, Math.sqrt(Math.max(1, b.low) * Math.max(1, b.high))]));
const lengthAxis = (middle) => ({
  type: "log", label: "context tokens (log scale)", ticks: [...middle.values()], tickFormat: (v) => (v >= 1000 ? `${(v / 1000).toPrecision(2)}k` : v.toFixed(0)), inset: 8,
});

/** Names and signs of the presses, for plots that have several in a panel. */
const legend = (series) =>
  el("ul", { class: "legend" }, series.map((one) => el("li", {}, swatch(one), one.name)));

/** Score over lengths: a line per budget, and between two lines where the report names a break. */
function overLengths(experiment, variant, series, width, open) {
  const middle = middles(variant);
  const rows = series.flatMap((one) => one.points.flatMap((point, rank) => variant.bins.map(({ bin }) => {
    const cell = experiment.cell(point, bin);
    return cell && known(cell.mean)
      ? { ...one, panel: one.name, label: point.label, budget: askedLabel(point), x: middle.get(bin), y: cell.mean, low: cell.low, high: cell.high, hollow: cell.degenerate > 0,
        weight: point.full ? 1 : 0.85 - 0.55 * (rank / Math.max(1, one.points.length - 1)), full: point.full,
        point: point.index, bin, title: cellSentence(experiment, variant, point, bin) }
      : null;
  }).filter(Boolean)));
  const names = series.map((s) => s.name).filter((name) => rows.some((r) => r.panel === name));
  const cut = grid(names, width), at = { fx: cut.fx, fy: cut.fy };
  const zones = breaks(experiment, variant, series, rows);
  const ends = d3.groups(rows, (r) => r.panel, (r) => r.budget).flatMap(([, lines]) =>
    apart(lines.map(([, line]) => d3.greatest(line, (r) => r.x)), 0.1));
  return clickable(Plot.plot(panels(cut, width, 170, {
    ariaLabel: "Score over context length, a panel per press", marginRight: 34,
    x: lengthAxis(middle),
    y: { label: variant.metric, labelAnchor: "center", labelArrow: "none", domain: scoreDomain(rows), grid: true, ticks: 4 },
    marks: [
      outline(cut),
      Plot.areaY(zones, { ...at, x: "x", y1: "low", y2: "high", z: "panel", fill: "var(--loss)", fillOpacity: 0.22 }),
      Plot.line(rows, { ...at, x: "x", y: "y", z: (d) => `${d.panel} ${d.budget}`, stroke: colourOf, strokeOpacity: "weight", strokeWidth: (d) => (d.full ? 2.2 : 1.6) }),
      dots(rows, { ...at, r: 2.6, strokeOpacity: "weight", fillOpacity: "weight" }),
      Plot.text(ends, { ...at, x: "x", y: "y", text: "budget", dx: 7, textAnchor: "start", fontSize: 10, fill: "var(--muted)" }),
      titles(cut, new Map(series.map((s) => [s.name, s]))), tips(rows, at),
    ],
  })), open);
}

/** Of the ends of lines those that have room for a label: at least `least` from the one above. */
function apart(ends, least) {
  const kept = [];
  for (const end of d3.sort(ends, (r) => -r.y)) {
    if (!kept.length || kept.at(-1).y - end.y >= least) kept.push(end);
  }
  return kept;
}

/** Between which two budgets each press breaks (`transitions`), as an area over the lengths. */
function breaks(experiment, variant, series, rows) {
  const number = experiment.variants.indexOf(variant);
  return experiment.transitions.filter((t) => t.variant === number && known(t.transition_label) && t.shape !== "smooth").flatMap((t) => {
    const one = series.find((s) => s.press === t.press && s.controller === t.controller && s.seed === t.seed && s.kind === t.budget_kind);
    if (!one) return [];
    const line = (label) => rows.filter((r) => r.panel === one.name && r.label === label);
    const above = new Map(line(t.transition_above_label).map((r) => [r.bin, r.y]));
    return line(t.transition_label).filter((r) => above.has(r.bin))
      .map((r) => ({ panel: r.panel, x: r.x, low: r.y, high: above.get(r.bin) }));
  });
}
