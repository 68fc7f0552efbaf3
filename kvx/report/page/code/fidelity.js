// Fidelity: how far next-token distributions are from the full cache's along the full cache's own answers.

const LEAST_KL = 1e-6;  // where a logarithmic axis begins: below lies rounding
const nats = (value) => (!known(value) ? "–" : value === 0 ? "0" : value < 0.001 ? value.toExponential(0) : `${Number(value.toPrecision(2))}`);
const positions = (row) => (!known(row.to) ? `${row.from}–` : row.to === row.from ? `${row.from}` : `${row.from}–${row.to}`);
const MEASURED = [
  { key: "kl", title: "KL(full ‖ compressed), nats per token", log: true },
  { key: "agreement", title: "same likeliest token, share of tokens", log: false },
];

function fidelitySentence(point, row, where) {
  return `${pointName(point)}, ${where}: KL ${nats(row.kl)} ${interval(row.kl_low, row.kl_high, nats)} nats per token\nsame likeliest token ${fixed(row.agreement, 3)} ${interval(row.agreement_low, row.agreement_high)}${known(row.same) ? `, same answer ${fixed(row.same)}` : ""}${known(row.perplexity) ? `, perplexity ×${Number(row.perplexity.toPrecision(3))}` : ""}\n${plural(row.tokens, "token")} of ${plural(row.prompts, "prompt")}${row.degenerate ? `, ${row.degenerate} degenerate †` : ""}`;
}

/** Rows of compressed points in one bin: x the budget, y what is measured. */
function fidelityRows(experiment, variant, series, bin, key) {
  return series.flatMap((one) => one.points.filter((p) => !p.full && known(p.budget)).map((point) => {
    const row = experiment.fidelity(point, bin);
    if (!row || !known(row[key])) return null;
    const floor = (value) => (key === "kl" ? Math.max(value, LEAST_KL) : value);
    return {
      ...one, panel: one.name, x: point.budget, y: floor(row[key]), low: floor(row[`${key}_low`] ?? row[key]), high: floor(row[`${key}_high`] ?? row[key]),
      hollow: row.degenerate > 0, point: point.index, budget: point.label, bin, title: fidelitySentence(point, row, binName(variant, bin)),
    };
  }).filter(Boolean));
}

/** An axis of what is measured; an interval that reaches 0 does not decide a logarithmic one. */
function measuredAxis(measured, rows, label) {
  const common = { label, labelAnchor: "center", labelArrow: "none", grid: true };
  if (!measured.log) return { ...common, domain: [0, 1] };
  const least = Math.max(d3.min(rows, (r) => r.low), d3.min(rows, (r) => r.y) / 10);
  return { ...common, type: "log", domain: [least, d3.max(rows, (r) => r.high)], clamp: true, ticks: 4, tickFormat: (v) => nats(v) };
}

/** One plot per measure, all presses in it. */
function fidelityCurves(experiment, variant, series, bin, width) {
  const columns = width > 760 ? 2 : 1, each = Math.floor(width / columns) - 8;
  return el("div", { class: "beside" }, MEASURED.map((measured) => {
    const rows = fidelityRows(experiment, variant, series, bin, measured.key);
    if (!rows.length) return null;
    return Plot.plot({
      width: each, height: 280, marginLeft: 54, marginRight: 16, marginTop: 24, marginBottom: 38, ariaLabel: measured.title,
      color: { type: "identity" }, symbol: { type: "identity" }, x: budgetAxis(rows), y: measuredAxis(measured, rows, measured.title),
      marks: [
        Plot.areaY(rows, { x: "x", y1: "low", y2: "high", z: "panel", fill: colourOf, fillOpacity: 0.1 }),
        Plot.line(rows, { x: "x", y: "y", z: "panel", stroke: colourOf, strokeWidth: 2 }),
        dots(rows, {}), tips(rows, {}),
      ],
    });
  }));
}

/** A row per press, nearest first, for more presses than curves can tell apart; paler the less is kept. */
function fidelityRowsPlot(experiment, variant, series, bin, width) {
  const columns = width > 760 ? 2 : 1;
  const kl = fidelityRows(experiment, variant, series, bin, "kl");
  const names = d3.groupSort(kl, (g) => d3.max(g, (r) => r.y), (r) => r.panel);
  const widest = Math.min(190, 20 + 6.4 * (d3.max(names, (n) => n.length) ?? 0));
  return el("div", { class: "beside" }, MEASURED.map((measured, i) => {
    const rows = fidelityRows(experiment, variant, series, bin, measured.key);
    if (!rows.length) return null;
    const named = columns === 1 || i === 0;
    return Plot.plot({
      width: columns === 1 ? width : Math.floor((width - widest) / 2 + (named ? widest : 0)) - 8, height: 60 + 18 * names.length,
      marginLeft: named ? widest : 14, marginRight: 24, marginTop: 30, ariaLabel: measured.title, color: { type: "identity" }, symbol: { type: "identity" },
      x: { ...measuredAxis(measured, rows, null), axis: "bottom" }, y: { type: "band", domain: names, label: null, axis: named ? "left" : null, tickSize: 0 },
      marks: [
        Plot.text([measured.title], { frameAnchor: "top-left", dy: -22, fontWeight: 600, fontSize: 12 }),
        Plot.ruleY(rows, { y: "panel", x1: "low", x2: "high", stroke: colourOf, strokeOpacity: 0.4, strokeWidth: 1.5 }),
        Plot.dot(rows, { y: "panel", x: "y", symbol: symbolOf, r: 4, stroke: colourOf, fill: (d) => (d.hollow ? "var(--surface)" : colourOf(d)), fillOpacity: (d) => 0.25 + 0.75 * Math.min(1, d.x) }),
        Plot.tip(rows, Plot.pointer({ y: "panel", x: "y", title: "title", lineWidth: 40, fill: "var(--surface)", stroke: "var(--line)" })),
      ],
    });
  }));
}

/** KL over positions in the answer: a panel per press, a line per budget. */
function fidelityAlongAnswers(experiment, variant, series, width) {
  const rows = series.flatMap((one) => one.points.filter((p) => !p.full).flatMap((point, rank, all) => experiment.fidelityAlong(point).filter((r) => known(r.kl)).map((row) => ({
    ...one, panel: one.name, x: row.from, label: positions(row), budget: point.label, y: Math.max(row.kl, LEAST_KL), low: Math.max(row.kl_low ?? row.kl, LEAST_KL), high: Math.max(row.kl_high ?? row.kl, LEAST_KL),
    weight: 0.95 - 0.55 * (rank / Math.max(1, all.length - 1)), hollow: row.degenerate > 0, title: fidelitySentence(point, row, `token ${positions(row)}`),
  }))));
  if (!rows.length) return null;
  const names = series.map((s) => s.name).filter((name) => rows.some((r) => r.panel === name));
  const cut = grid(names, width), at = { fx: cut.fx, fy: cut.fy };
  const labels = [...new Map(d3.sort(rows, (r) => r.x).map((r) => [r.label, r.x])).keys()];
  const ends = d3.groups(rows, (r) => r.panel, (r) => r.budget).flatMap(([, lines]) => lines.map(([, line]) => d3.greatest(line, (r) => r.x)));
  const z = (d) => `${d.panel} ${d.budget}`;
  return Plot.plot(panels(cut, width, 160, {
    ariaLabel: "KL over positions in the answer, a panel per press", marginRight: 38,
    x: { type: "point", domain: labels, label: "token of the answer", padding: 0.4 }, y: measuredAxis(MEASURED[0], rows, "KL, nats per token"),
    marks: [
      outline(cut),
      Plot.ruleX(rows, { ...at, x: "label", y1: "low", y2: "high", stroke: colourOf, strokeOpacity: 0.35 }),
      Plot.line(rows, { ...at, x: "label", y: "y", z, stroke: colourOf, strokeOpacity: "weight", strokeWidth: 2 }),
      dots(rows, { ...at, x: "label", r: 2.8, strokeOpacity: "weight", fillOpacity: "weight" }),
      Plot.text(ends, { ...at, x: "label", y: "y", text: "budget", dx: 8, textAnchor: "start", fontSize: 10, fill: "var(--muted)" }),
      titles(cut, new Map(series.map((s) => [s.name, s]))), tips(rows, { ...at, x: "label" }),
    ],
  }));
}

/** The section of one variant; null where nothing was compared. */
function fidelitySection(experiment, number, series) {
  const variant = experiment.variants[number];
  const shown = byKind(series.filter((one) => one.points.some((p) => !p.full && experiment.fidelity(p, ALL_BINS))));
  if (!shown.length) return null;
  const bins = [[ALL_BINS, "all lengths"], ...variant.bins.map((b) => [b.bin, tokenRange(b)])];
  const many = shown.length > 6;
  const over = (bin) => (width) => (many ? fidelityRowsPlot : fidelityCurves)(experiment, variant, shown, bin, width);
  const plots = drawn(over(ALL_BINS));
  return section("fidelity", "Fidelity", "Every point was fed the full cache's own greedy answer. KL of its next-token distributions from the full cache's, and how often both find the same token likeliest. Whiskers and bands are intervals over prompts; hollow markers are degenerate.",
    el("div", { class: "controls" }, bins.length > 2 ? choice("length", bins, ALL_BINS, (bin) => plots.redraw(over(bin))) : null),
    many ? null : legend(shown), plots.box,
    el("h3", {}, "Along the answer"), drawn((width) => fidelityAlongAnswers(experiment, variant, shown, width)).box);
}
