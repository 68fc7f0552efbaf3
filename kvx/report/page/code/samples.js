// The sample browser: every answer beside the full cache's. Only the rows in sight are elements.

const ROW_PX = 58;
const OUTCOMES = [
  ["all", "all"], ["lost", "lost"], ["gained", "gained"], ["failed", "failed"], ["looped", "looped"], ["degenerate", "degenerate"],
];

/** Answers with the lookups of the browser: `twin(i)` is the full cache's answer to the same prompt. */
function samplesOf(raw, experiment) {
  const { texts, prompts, answers } = raw;
  const text = (number) => (known(number) ? texts[number] : null);
  const at = experiment.points.map(() => new Map());
  answers.point.forEach((point, i) => at[point].set(answers.prompt[i], i));
  const twin = (i) => {
    const full = experiment.points[answers.point[i]].twin;
    return known(full) ? at[full].get(answers.prompt[i]) : undefined;
  };
  const outcomes = answers.point.map((number, i) => {
    const found = new Set(["all"]), other = twin(i);
    const { higher } = experiment.variants[experiment.points[number].variant];
    if (other !== undefined && known(answers.score[other])) {
      // an answer that is missing counts as wrong, as in the tables
      const change = (higher ? 1 : -1) * ((answers.score[i] ?? (higher ? 0 : 1)) - answers.score[other]);
      if (change) found.add(change < 0 ? "lost" : "gained");
    }
    if (known(answers.failure[i])) found.add("failed");
    if (answers.looping[i]) found.add("looped");
    if (known(answers.degenerate[i])) found.add("degenerate");
    return found;
  });
  return { texts, prompts, answers, text, at, twin, outcomes };
}

/** A context in pieces, each shaded by the level (a digit of `kept`) of its tokens, which have so many `chars`. */
function shadedBy(context, chars, kept) {
  // offsets count code points, as Python does
  const points = Array.from(context), pieces = [];
  let start = 0, end = 0;
  for (let token = 0; token < chars.length; token++) {
    end += chars[token];
    if (token + 1 < chars.length && kept[token + 1] === kept[token]) continue;
    pieces.push(el("span", { class: "kept", "data-level": kept[token], style: { "--level": kept[token] } }, points.slice(start, end).join("")));
    start = end;
  }
  return [...pieces, points.slice(start).join("")];
}

function keptKey() {
  const steps = d3.range(10).map((level) => el("span", { class: "kept", "data-level": String(level), style: { "--level": String(level) } }, level === 0 ? "none" : level === 9 ? "all" : "\u00a0"));
  return el("p", { class: "muted kept-key" }, "Kept in ", steps, " of the layers and heads that the press compresses. Struck: kept in none.");
}

function sampleBrowser(experiment, samples, note) {
  const { prompts, answers, text, outcomes } = samples;
  const state = { variant: 0, series: "", budget: "", bin: "", show: "all", search: "", chosen: 0, context: false };
  let found = [];
  const list = el("div", { class: "rows", role: "listbox", tabindex: "0", "aria-label": "examples" });
  const inner = el("div", { class: "inner" });
  list.append(inner);
  const detail = el("article", { class: "detail", "aria-live": "polite" });
  const filters = el("div", { class: "filters" });
  const count = el("p", { class: "count", role: "status" });

  const pointOf = (i) => experiment.points[answers.point[i]];

  /** The answers that pass every filter but that of the outcome. */
  function candidates() {
    const words = state.search.toLowerCase();
    const paired = experiment.points.some((p) => p.variant === state.variant && known(p.twin));
    return d3.range(answers.point.length).filter((i) => {
      const point = pointOf(i), prompt = answers.prompt[i];
      if (point.variant !== state.variant) return false;
      if (state.series && point.series !== state.series) return false;
      if (!state.budget && paired && !known(point.twin)) return false;  // the full cache's stand beside others
      if (state.budget && budgetKey(point) !== state.budget) return false;
      if (state.bin !== "" && prompts.bin[prompt] !== Number(state.bin)) return false;
      if (!words) return true;
      return [prompts.id[prompt], text(prompts.question[prompt]), text(answers.text[i])]
        .some((one) => one?.toLowerCase().includes(words));
    });
  }

  function refilter(keep) {
    const before = found[state.chosen], all = candidates();
    found = all.filter((i) => outcomes[i].has(state.show));
    state.chosen = Math.max(0, keep === undefined ? found.indexOf(before) : found.findIndex((i) => prompts.id[answers.prompt[i]] === keep));
    drawFilters(all);
    count.textContent = `${plural(found.length, "answer")}${note ? ` · ${note}` : ""}`;
    inner.style.height = `${found.length * ROW_PX}px`;
    choose(state.chosen);
  }

  function drawFilters(all) {
    const own = experiment.points.filter((p) => p.variant === state.variant);
    const series = experiment.series(state.variant), variant = experiment.variants[state.variant];
    const set = (name) => (value) => { state[name] = value; refilter(); };
    const searched = el("input", {
      type: "search", placeholder: "question, answer or id ( / )", value: state.search, "aria-label": "search",
      oninput: (event) => { state.search = event.target.value; refilter(); filters.querySelector("input").focus(); },
    });
    const focused = document.activeElement === filters.querySelector("input");
    filters.replaceChildren(
      picker("press", [["", "all presses"], ...series.map((s) => [s.name, s.name])], state.series, set("series")),
      picker("budget", [["", "all budgets"], ...budgetsOf(own).map((b) => [b.key, b.label])], state.budget, set("budget")),
      picker("length", [["", "all lengths"], ...variant.bins.map((b) => [b.bin, tokenRange(b)])], state.bin, set("bin")),
      choice("outcome", OUTCOMES.map(([value, label]) => [value, `${label} ${d3.sum(all, (i) => outcomes[i].has(value)).toLocaleString("en")}`]), state.show, set("show")),
      searched,
    );
    if (focused) { searched.focus(); searched.setSelectionRange(state.search.length, state.search.length); }
  }

  function drawRows() {
    const first = Math.max(0, Math.floor(list.scrollTop / ROW_PX) - 4);
    const last = Math.min(found.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_PX) + 4);
    inner.replaceChildren(...d3.range(first, last).map((place) => {
      const i = found[place], prompt = answers.prompt[i];
      return el("div", {
        class: "row", role: "option", id: `row-${place}`, "aria-selected": String(place === state.chosen),
        style: { top: `${place * ROW_PX}px` }, onclick: () => choose(place),
      },
        el("div", {}, el("b", {}, prompts.id[prompt]), badges(i)),
        el("div", { class: "what" }, `${pointName(pointOf(i))} · `, (text(answers.text[i]) ?? "no answer").slice(0, 90)));
    }));
  }

  function badges(i) {
    const marks = OUTCOMES.slice(1).filter(([value]) => outcomes[i].has(value));
    return marks.map(([value, label]) => el("span", { class: `badge ${value}` }, label));
  }

  function choose(place) {
    state.chosen = Math.max(0, Math.min(found.length - 1, place));
    const top = state.chosen * ROW_PX;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + ROW_PX > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_PX - list.clientHeight;
    list.setAttribute("aria-activedescendant", `row-${state.chosen}`);
    drawRows();
    drawDetail();
    remember();
  }

  function drawDetail() {
    const i = found[state.chosen];
    if (i === undefined) {
      detail.replaceChildren(el("p", { class: "none-here" }, "No answer passes these filters."));
      return;
    }
    const point = pointOf(i), prompt = answers.prompt[i], other = samples.twin(i);
    const variant = experiment.variants[point.variant];
    const ours = text(answers.text[i])?.trim(), theirs = other === undefined ? null : text(answers.text[other])?.trim();
    const parts = known(ours) && known(theirs) ? wordDifferences(theirs, ours) : null;
    const references = (prompts.references[prompt] ?? []).map(text);
    detail.replaceChildren(
      el("header", {}, el("h3", {}, prompts.id[prompt], badges(i)),
        el("p", { class: "muted" }, `${pointName(point)} · ${prompts.tokens[prompt]?.toLocaleString("en") ?? "?"} context tokens · example ${(state.chosen + 1).toLocaleString("en")} of ${found.length.toLocaleString("en")}`)),
      el("div", { class: "asked" }, el("h4", {}, "Question"), el("p", { class: "given" }, text(prompts.question[prompt])),
        el("h4", {}, references.length > 1 ? "Right answers" : "Right answer"), el("p", { class: "given" }, references.join("  ·  "))),
      el("div", { class: "pair" },
        other === undefined ? null : answerCard("Full cache", pointName(experiment.points[answers.point[other]]), other, parts ? marked(parts.a, "del") : theirs, variant),
        answerCard(known(point.twin) ? "Compressed" : "Answer", pointName(point), i, parts ? marked(parts.b, "ins") : ours, variant)),
      ladder(point, prompt),
      contextOf(prompt, i, point));
  }

  function answerCard(title, name, i, content, variant) {
    const said = [
      `${variant.metric} ${fixed(answers.score[i])}`, known(answers.tokens[i]) ? plural(answers.tokens[i], "token") : null, text(answers.finish[i]),
      answers.capped[i] ? "cut at the token limit" : null,
      known(answers.failure[i]) ? kindName(text(answers.failure[i])) : null,
      answers.looping[i] ? `loops${known(answers.onset[i]) ? ` from token ${answers.onset[i]}` : ""}` : null,
      known(answers.degenerate[i]) ? text(answers.degenerate[i]) : null,
    ].filter(Boolean);
    return el("div", { class: "card" }, el("h4", {}, title, el("small", {}, name)),
      el("p", { class: "given answer" }, known(content) ? (content.length ? content : el("em", {}, "(empty)")) : el("em", {}, "no answer")),
      el("p", { class: "muted" }, said.join(" · ")));
  }

  /** The same prompt at every press and budget. */
  function ladder(point, prompt) {
    const series = experiment.series(point.variant), budgets = budgetsOf(series.flatMap((s) => s.points));
    const variant = experiment.variants[point.variant];
    const rows = series.map((one) => {
      const at = new Map(one.points.map((p) => [budgetKey(p), p]));
      return el("tr", {}, el("th", { scope: "row" }, one.name), budgets.map((budget) => {
        const own = at.get(budget.key), i = own && samples.at[own.index].get(prompt);
        if (i === undefined) return el("td");
        const look = shade({ tone: "score" }, answers.score[i], variant);
        return el("td", {}, el("button", {
          type: "button", class: look.class, style: look.style, "aria-label": `${pointName(own)}: ${fixed(answers.score[i])}`,
          "aria-current": own.index === point.index ? "true" : null, onclick: () => open({ point: own.index, bin: prompts.bin[prompt], example: prompts.id[prompt] }),
        }, known(answers.score[i]) ? short(fixed(answers.score[i])) : "–"));
      }));
    });
    return el("details", { open: series.length <= 8 }, el("summary", {}, "This prompt at every press and budget"),
      el("div", { class: "scroll" }, el("table", { class: "heat small" },
        el("thead", {}, el("tr", {}, el("td"), budgets.map((b) => el("th", { scope: "col" }, short(b.label))))), el("tbody", {}, rows))));
  }

  function contextOf(prompt, i, point) {
    const context = text(prompts.context[prompt]), kept = text(answers.kept[i]);
    if (!context) return null;
    const body = el("p", { class: "given context" }), shaded = known(kept) && known(prompts.chars[prompt]);
    const fill = () => (shaded ? body.replaceChildren(...shadedBy(context, prompts.chars[prompt], kept)) : body.replaceChildren(context));
    const details = el("details", { open: state.context, ontoggle: () => { state.context = details.open; if (details.open) fill(); } },
      el("summary", {}, `The context (${context.length.toLocaleString("en")} characters)${shaded ? `, and what ${pointName(point)} kept of it` : ""}`),
      shaded ? keptKey() : null, body);
    if (state.context) fill();
    return details;
  }

  /** Show the examples of a point and bin; of those the ones with an outcome, if one is named. */
  function open({ point, bin, show = "all", example }, scroll = false) {
    const one = experiment.points[point];
    Object.assign(state, { variant: one.variant, series: one.series, budget: budgetKey(one), bin: bin === ALL_BINS ? "" : bin, show, search: "" });
    refilter(example ?? "");
    if (scroll) {
      root.scrollIntoView({ block: "start" });
      list.focus({ preventScroll: true });
    }
  }

  /** The address names what is shown, so that it can be sent to somebody. */
  function remember() {
    const i = found[state.chosen];
    if (i === undefined || !state.series || !state.budget) return;
    const parts = new URLSearchParams({ point: pointOf(i).id, bin: state.bin, show: state.show, example: prompts.id[answers.prompt[i]] });
    history.replaceState(null, "", `#examples?${parts}`);
  }

  list.addEventListener("scroll", drawRows, { passive: true });
  list.addEventListener("keydown", (event) => {
    const page = Math.max(1, Math.floor(list.clientHeight / ROW_PX) - 1);
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -1e9, End: 1e9 }[event.key];
    if (step === undefined || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    choose(state.chosen + step);
  });
  new ResizeObserver(drawRows).observe(list);
  const root = section("examples", "Examples",
    "Each answer beside the full cache's answer to the same prompt. Struck words are missing in the compressed answer, underlined ones are new. Arrow keys go from one to the next.",
    filters, count, el("div", { class: "browser" }, list, detail));
  return { root, open, start: (variant) => { Object.assign(state, { variant, series: "", budget: "", bin: "" }); refilter(); }, search: () => filters.querySelector("input").focus() };
}
