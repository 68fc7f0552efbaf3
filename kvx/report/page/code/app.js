// Puts the page together. Figures come first; the examples are unpacked when they can be seen.

const page = document.getElementById("page");

/** A box whose plot is drawn again for every width. */
function drawn(make) {
  const box = el("div", { class: "plot" });
  let width = 0, wanted = make;
  const draw = () => {
    if (width < 40) return;
    const plot = wanted(width);
    box.replaceChildren(...(plot ? [plot] : []));
  };
  new ResizeObserver(([entry]) => {
    const now = Math.floor(entry.contentRect.width);
    if (now !== width) { width = now; draw(); }
  }).observe(box);
  return { box, redraw: (other) => { wanted = other; draw(); } };
}

/** The first `n` sentences, and the others behind a line that says how many there are. */
function folded(sentences, n, list) {
  const rest = sentences.slice(n);
  return [list(sentences.slice(0, n)), rest.length ? el("details", {}, el("summary", {}, `${rest.length} more`), list(rest)) : null];
}

function verdict(experiment) {
  const item = (sentence) => el("li", {}, prose(sentence));
  return section("verdict", "Verdict", null,
    folded(experiment.verdict, 8, (some) => el("ul", { class: "findings" }, some.map(item))),
    experiment.findings.length === 0 ? null : el("details", {}, el("summary", {}, `All findings (${experiment.findings.length})`), el("ul", { class: "findings" }, experiment.findings.map(item))),
    experiment.warnings.length
      ? el("div", { class: "beware" }, el("h3", {}, "Before you believe it"), folded(experiment.warnings, 3, (some) => el("ul", {}, some.map(item))))
      : null);
}

function facts(experiment) {
  return section("facts", "Reproducing this", null, el("div", { class: "scroll" }, el("table", { class: "facts" }, el("tbody", {},
    experiment.facts.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", {}, prose(value))))))));
}

/** Sections about one variant (model and dataset). */
function sectionsOf(experiment, number, open) {
  const variant = experiment.variants[number], series = experiment.series(number);
  if (!experiment.answered) return [fidelitySection(experiment, number, series)].filter(Boolean);
  const compressed = series.filter((s) => s.points.some((p) => !p.full));
  const shown = compressed.length ? compressed : series;
  const bins = [[ALL_BINS, "all lengths"], ...variant.bins.map((b) => [b.bin, tokenRange(b)])];
  const curved = byKind(shown), many = curved.length > 4;

  const view = { by: many ? "press" : "length", bin: ALL_BINS };
  const curve = () => (width) => (view.by === "press"
    ? curvesByPress(experiment, variant, curved, view.bin, width, open)
    : el("div", {}, legend(shown), curvesByLength(experiment, variant, curved, width, open)));
  const curves = drawn(curve());
  const lengths = choice("length", bins, ALL_BINS, (bin) => { view.bin = bin; curves.redraw(curve()); });
  lengths.hidden = view.by !== "press";
  const by = choice("panels", [["press", "a panel per press"], ["length", "a panel per length"]], view.by, (value) => {
    view.by = value;
    lengths.hidden = value !== "press";
    curves.redraw(curve());
  });

  const front = drawn((width) => paretoFront(experiment, variant, series, ALL_BINS, width, open));
  const needed = experiment.fits.some((f) => f.variant === number && f.bin !== ALL_BINS && (told(f, "b95") || told(f, "b50")));
  const latency = series.some((s) => s.points.some((p) => experiment.cell(p, ALL_BINS)?.n_latency > 0));
  return [
    heatMap(experiment, variant, shown, open),
    section("curves", "Score over budget", `Bands are ${experiment.confidence} intervals; hollow markers are degenerate. Click a marker to read its answers.${experiment.fits.length ? " Dashed: the fitted curve. The bar at the foot: the smallest budget that keeps 95% of the full cache's score, with its interval." : ""}`,
      el("div", { class: "controls" }, by, lengths), curves.box),
    section("lengths", "Score over context length", "A line per budget, paler the less is kept. Shaded: between the two budgets of a break that the report names.",
      drawn((width) => overLengths(experiment, variant, curved, width, open)).box,
      needed ? [el("h3", {}, "The budget that a length needs"), el("p", { class: "lead" }, "From fitted curves: the smallest budget that keeps 95% of the full cache's score (solid) and 50% (dashed), with intervals."), drawn((width) => neededBudgets(experiment, variant, curved, width)).box] : null),
    section("cost", "Score for the memory", "KV bytes of the compressed prompt. The dashed line joins the points that no other beats in score and bytes at once.",
      el("div", { class: "controls" }, choice("length", bins, ALL_BINS, (bin) => front.redraw((width) => paretoFront(experiment, variant, series, bin, width, open)))), legend(series), front.box),
    section("failures", "Failures and catastrophes", "Failures yield no proper answer. Catastrophes are answers that derail; the curves show what compression added to the full cache's.",
      drawn((width) => failureBars(experiment, variant, series, width, open)).box,
      drawn((width) => catastropheCurves(experiment, variant, curved, width, open)).box),
    fidelitySection(experiment, number, series),
    latency ? section("latency", "Latency", "Requests that ran alone, one at a time; medians.", drawn((width) => latencyDots(experiment, variant, series, width)).box) : null,
  ].filter(Boolean);
}

/** Light, dark, or what the system says. */
function themeButton() {
  const modes = ["auto", "light", "dark"];
  const button = el("button", { type: "button", class: "plain", title: "light or dark (t)" }, "◐ auto");
  button.addEventListener("click", () => {
    const mode = modes[(modes.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % 3];
    if (mode === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = mode;
    button.textContent = `◐ ${mode}`;
  });
  return button;
}

function header(experiment, theme) {
  const links = [["verdict", "Verdict"], ["map", "Map"], ["curves", "Budget"], ["lengths", "Length"], ["cost", "Memory"], ["failures", "Failures"], ["fidelity", "Fidelity"], ["latency", "Latency"], ["examples", "Examples"], ["facts", "Reproduce"]]
    .filter(([id]) => (id === "fidelity" ? experiment.compared : experiment.answered || ["verdict", "facts"].includes(id)));
  const models = [...new Set(experiment.variants.map((v) => `${v.model} on ${v.dataset}`))];
  const missing = experiment.requests - experiment.responses;
  return [
    el("nav", { "aria-label": "sections" }, el("strong", {}, "kvx"), links.map(([id, name]) =>
      el("a", { href: `#${id}`, onclick: (event) => { event.preventDefault(); document.getElementById(id)?.scrollIntoView(); } }, name)), theme),
    el("header", { class: "top" }, el("h1", {}, experiment.name),
      el("p", { class: "lead" }, models.length > 3 ? `${models.length} pairs of model and dataset` : models.join(" · ")),
      el("p", { class: "muted" }, experiment.answered ? `${plural(experiment.points.length, "point")} · ${plural(experiment.requests, "request")} · ${missing ? `${missing.toLocaleString("en")} without a response` : "all answered"}` : `${plural(experiment.points.length, "point")} · compared with the full cache token by token, no answers`)),
  ];
}

function help() {
  const keys = [["j k ↑ ↓", "next and previous example"], ["/", "search the examples"], ["← ↑ → ↓", "move in the map"], ["Enter", "open a cell's examples"], ["m", "back to the map"], ["t", "light or dark"], ["?", "this list"]];
  const dialog = el("dialog", { "aria-label": "keys" }, el("h3", {}, "Keys"), el("dl", {}, keys.map(([key, what]) => [el("dt", {}, key), el("dd", {}, what)])),
    el("form", { method: "dialog" }, el("button", {}, "close")));
  return dialog;
}

async function start() {
  const experiment = experimentOf(await unpack("figures"));
  const theme = themeButton(), keys = help();
  let browser = null, opening = null, current = 0;
  const place = el("div", { class: "waiting" });

  /** The sample browser; unpacked once, when it is first wanted. */
  const samples = () => {
    opening ??= unpack("samples").then((raw) => {
      const { prompts, all, chars, unshaded } = document.getElementById("samples").dataset;
      const note = [
        Number(prompts) < Number(all) ? `of ${plural(Number(prompts), "prompt")}, drawn evenly from ${Number(all).toLocaleString("en")}, so that this page stays small` : null,
        chars ? `contexts are cut to ${Number(chars).toLocaleString("en")} characters` : null,
        unshaded ? "what presses kept of the contexts is left out" : null,
      ].filter(Boolean).join(" · ");
      browser = sampleBrowser(experiment, samplesOf(raw, experiment), note);
      place.replaceWith(browser.root);
      browser.start(current);
      return browser;
    });
    return opening;
  };
  const open = async (what) => (await samples()).open(what, true);

  const body = el("div");
  const show = (number) => {
    current = number;
    body.replaceChildren(...sectionsOf(experiment, number, open));
    browser?.start(number);
  };
  const variants = experiment.variants.length > 1
    ? el("div", { class: "controls variants" }, picker("model and data", experiment.variants.map((v, i) => [i, v.label]), 0, (value) => show(Number(value))))
    : null;
  page.replaceChildren(...[...header(experiment, theme), verdict(experiment), variants, body, experiment.answered ? place : null, facts(experiment), keys].filter(Boolean));
  show(0);
  page.removeAttribute("aria-busy");

  document.addEventListener("keydown", async (event) => {
    if (event.target.closest("input, select, textarea") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/") { event.preventDefault(); const b = await samples(); b.root.scrollIntoView(); b.search(); }
    else if (event.key === "t") theme.click();
    else if (event.key === "?") keys.showModal();
    else if (event.key === "m") { const map = document.getElementById("map"); map?.scrollIntoView(); map?.querySelector("tbody button[tabindex='0']")?.focus(); }
  });
  // on paper nothing can be unfolded
  addEventListener("beforeprint", () => {
    for (const folded of document.querySelectorAll("#verdict details")) folded.open = true;
  });
  const linked = location.hash.match(/^#examples\?(.*)$/);
  if (linked) {
    const asked = new URLSearchParams(linked[1]);
    const point = experiment.points.find((p) => p.id === asked.get("point"));
    if (point) open({ point: point.index, bin: asked.get("bin") === "" ? ALL_BINS : Number(asked.get("bin")), show: asked.get("show") ?? "all", example: asked.get("example") });
  }
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((e) => e.isIntersecting)) return;
    seen.disconnect();
    samples();
  }, { rootMargin: "600px" });
  if (experiment.answered) seen.observe(place);
}

start().catch((error) => {
  page.replaceChildren(el("p", { class: "broken" }, `This page could not be shown: ${error.message}. report.md beside it has the same numbers.`));
  throw error;
});
