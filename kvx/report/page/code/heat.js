// The map: presses by budgets, once for each length bin. Every cell opens its examples.

const derailed = (kind, e, point, bin) => e.catastrophes(point, bin).find((row) => row.kind === kind);
const excess = (kind, label) => ({
  label, value: (e, p, b) => derailed(kind, e, p, b)?.excess, bold: (e, p, b) => derailed(kind, e, p, b)?.clear, form: signed, tone: "loss",
});
/** Whether a test, corrected for how many there are, says that the difference is no chance. */
const changed = (e, point, bin) => ["loss", "gain"].includes(e.cell(point, bin)?.verdict);

/** What cells can show: value, form, where it is bold by a test of this very value, and where colours end. `loss` colours grow with damage. */
const MEASURES = {
  difference: { label: "against the full cache", value: (e, p, b) => e.cell(p, b)?.difference, bold: changed, form: signed, tone: "diverging" },
  score: { label: "score", value: (e, p, b) => e.cell(p, b)?.mean, bold: changed, form: fixed, tone: "score" },
  failures: { label: "failure rate", value: (e, p, b) => e.cell(p, b)?.failure_rate, bold: () => false, form: fixed, tone: "loss" },
  looping: excess("looping", "excess looping"),
  non_termination: excess("non_termination", "excess non-termination"),
  amnesia: excess("amnesia", "excess amnesia"),
  silent_failure: excess("silent_failure", "excess silent failure"),
};

/** Colour of a value as custom properties; the style sheet mixes them for light, dark and print. */
function shade(measure, value, variant) {
  if (!known(value)) return { class: "unknown", style: {} };
  let tone = measure.tone, strength = Math.min(1, Math.abs(value));
  if (tone === "diverging") tone = value * (variant.higher ? 1 : -1) < 0 ? "loss" : "gain";
  if (measure.tone === "loss" && value < 0) tone = "gain";
  if (tone === "score" && !variant.higher) tone = "loss";
  return {
    class: `${tone}${strength > 0.55 ? " strong" : ""}`,
    style: { "--strength": `${(100 * (0.06 + 0.94 * strength)).toFixed(1)}%` },
  };
}

const VERDICTS = {
  unclear: "no clear change", may_be_chance: "may be chance", too_few: "too few examples for a verdict",
  at_odds: "no verdict: interval and test disagree", nothing: "nothing to compare",
};

function cellSentence(experiment, variant, point, bin) {
  const cell = experiment.cell(point, bin);
  const parts = [`${pointName(point)}, ${binName(variant, bin)}${bin === ALL_BINS ? "" : " tokens"}:`,
    `${variant.metric} ${fixed(cell.mean)} ${interval(cell.low, cell.high)}, n = ${cell.n}`];
  if (known(cell.difference)) {
    parts.push(`· ${signed(cell.difference)} ${interval(cell.difference_low, cell.difference_high, signed)} against the full cache, ${cell.lost} lost, ${cell.gained} gained${cell.missing ? `, ${cell.missing} missing (wrong)` : ""}`);
    parts.push(`(${VERDICTS[cell.verdict] ?? `a ${cell.verdict}`}${known(cell.p) ? `, corrected p = ${cell.p < 0.001 ? cell.p.toExponential(0) : cell.p.toPrecision(2)}` : ""})`);
  }
  parts.push(`· ${cell.failures} failed`);
  if (cell.degenerate) parts.push(`· ${cell.degenerate} degenerate †`);
  return parts.join(" ");
}

function heatMap(experiment, variant, series, open) {
  const bins = [ALL_BINS, ...variant.bins.map((b) => b.bin)];
  const readout = el("output", { class: "readout", "aria-live": "polite" }, "Move over a cell, or use the arrow keys; Enter opens its examples.");
  const frame = el("div", { class: "scroll" });
  const present = new Set();
  for (const one of series) for (const point of one.points) {
    for (const [name, measure] of Object.entries(MEASURES)) {
      if (known(measure.value(experiment, point, ALL_BINS))) present.add(name);
    }
  }
  const draw = (name) => {
    const measure = MEASURES[name];
    const shown = (point) => known(measure.value(experiment, point, ALL_BINS));
    const budgets = budgetsOf(series.flatMap((s) => s.points.filter(shown)));
    const head = el("thead", {},
      el("tr", {}, el("td"), bins.map((bin) => el("th", { scope: "colgroup", colspan: budgets.length, class: "start" },
        bin === ALL_BINS ? "all lengths" : [tokenRange(variant.bins.find((b) => b.bin === bin)), el("small", {}, " tokens")]))),
      el("tr", {}, el("th", { scope: "col", class: "corner" }, "press \\ budget"), bins.map(() => budgets.map((b, i) =>
        el("th", { scope: "col", class: i ? "" : "start" }, short(b.label))))));
    const rows = series.filter((s) => s.points.some(shown)).map((one) => {
      const at = new Map(one.points.map((p) => [budgetKey(p), p]));
      return el("tr", {}, el("th", { scope: "row" }, swatch(one), one.name),
        bins.map((bin) => budgets.map((budget, i) => heatCell(experiment, variant, measure, at.get(budget.key), bin, i === 0, readout, open))));
    });
    const room = Math.max(30, Math.min(60, Math.floor(950 / (bins.length * budgets.length))));
    frame.replaceChildren(el("table", { class: room < 38 ? "heat tight" : "heat", style: { "--cell": `${room}px` } }, head, el("tbody", {}, rows)));
    frame.querySelector("tbody button")?.setAttribute("tabindex", "0");
  };
  frame.addEventListener("keydown", moveInMap);
  const first = present.has("difference") ? "difference" : "score";
  draw(first);
  const labels = Object.entries(MEASURES).filter(([n]) => present.has(n)).map(([n, m]) => [n, m.label]);
  return section("map", "Where it holds, where it breaks",
    "One block of columns for each context length, one row for each press. Bold, by a test corrected for the number of cells: a loss or gain of score, an excess of catastrophes; failure rates are not tested. † degenerate: the press is not what it is meant to be there. Any cell opens its examples.",
    choice("what the cells show", labels, first, draw), readout, frame);
}

function heatCell(experiment, variant, measure, point, bin, start, readout, open) {
  const edge = start ? " start" : "";
  const cell = point && experiment.cell(point, bin);
  if (!cell) return el("td", { class: `none${edge}` });
  const value = measure.value(experiment, point, bin);
  const look = shade(measure, value, variant);
  const sentence = cellSentence(experiment, variant, point, bin);
  const tell = () => { readout.textContent = sentence; };
  const text = short(measure.form(value)) + (cell.degenerate ? "†" : "");
  return el("td", { class: edge.trim() },
    el("button", {
      type: "button", tabindex: "-1", class: `${look.class}${measure.bold(experiment, point, bin) ? " clear" : ""}`, style: look.style,
      "aria-label": sentence, "data-point": point.index, "data-bin": bin,
      onmouseenter: tell, onfocus: tell, onclick: () => open({ point: point.index, bin }),
    }, text));
}

/** Arrow keys go from cell to cell. */
function moveInMap(event) {
  const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
  if (!step || event.target.tagName !== "BUTTON") return;
  event.preventDefault();
  const rows = [...event.currentTarget.querySelectorAll("tbody tr")];
  let cell = event.target.closest("td");
  let row = rows.indexOf(cell.parentElement), column = cell.cellIndex, next = null;
  while (!next) {
    row += step[0];
    column += step[1];
    if (!rows[row]?.cells[column] || column < 1) return;
    next = rows[row].cells[column].querySelector("button");
  }
  event.target.setAttribute("tabindex", "-1");
  next.setAttribute("tabindex", "0");
  next.focus();
}
