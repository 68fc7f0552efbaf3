// What Python packed into the page (kvx/report/page/packing.py), as tables to look things up in.

const ALL_BINS = -1;

/** The JSON inside the script element `id`: deflated, in base64. */
async function unpack(id) {
  const text = atob(document.getElementById(id).textContent.trim());
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/** {a: [1, 2], b: [3, 4]} as [{a: 1, b: 3}, {a: 2, b: 4}]. */
function records(columns) {
  const names = Object.keys(columns);
  return (columns[names[0]] ?? []).map((_, i) =>
    Object.fromEntries(names.map((name) => [name, columns[name][i]])));
}

/** The budget as it was asked for: a fraction, or `256t`. */
const askedLabel = (point) => (point.kind === "tokens" ? `${point.asked}t` : `${point.asked}`);
const budgetKey = (point) => `${point.kind} ${point.asked}`;
const byBudget = (a, b) => b.budget - a.budget || b.asked - a.asked;

/**
 * Series of which each has budgets of one kind, beside the full cache. One with fractions and tokens becomes two: a
 * curve through both would join budgets that do not mean the same at every length.
 */
function byKind(series) {
  return series.flatMap((one) => {
    const kinds = [...new Set(one.points.filter((p) => !p.full).map((p) => p.kind))].sort();
    if (kinds.length < 2) return [{ ...one, kind: kinds[0] ?? one.kind }];
    return kinds.map((kind) => ({
      ...one, kind, name: kind === "tokens" ? `${one.name} (budgets in tokens)` : one.name,
      points: one.points.filter((p) => p.full || p.kind === kind),
    }));
  });
}

/** The experiment's figures, with the lookups that sections need. */
function experimentOf(raw) {
  const points = raw.points.map((point, index) => ({ ...point, index }));
  const cells = new Map();
  for (const cell of records(raw.cells)) cells.set(`${cell.point} ${cell.bin}`, cell);
  const groups = { failures: new Map(), catastrophes: new Map(), fidelity: new Map() };
  for (const name of Object.keys(groups)) {
    for (const row of records(raw[name])) {
      const key = `${row.point} ${row.bin}`;
      if (!groups[name].has(key)) groups[name].set(key, []);
      groups[name].get(key).push(row);
    }
  }
  return {
    ...raw,
    points,
    answered: cells.size > 0,
    compared: groups.fidelity.size > 0,
    /** Fidelity over all tokens, null where none was measured; and by ranges of positions. */
    fidelity: (point, bin) => (groups.fidelity.get(`${point.index} ${bin}`) ?? []).find((row) => row.from === 1 && !known(row.to)) ?? null,
    fidelityAlong: (point) => (groups.fidelity.get(`${point.index} ${ALL_BINS}`) ?? []).filter((row) => row.from > 1 || known(row.to)),
    cell: (point, bin) => cells.get(`${point.index} ${bin}`),
    catastrophes: (point, bin) => groups.catastrophes.get(`${point.index} ${bin}`) ?? [],
    /** Counts of each kind of failure; of all bins their sum. */
    failures(point, bin) {
      const bins = bin === ALL_BINS ? raw.variants[point.variant].bins.map((b) => b.bin) : [bin];
      const counts = new Map();
      for (const one of bins) {
        for (const { kind, count } of groups.failures.get(`${point.index} ${one}`) ?? []) {
          counts.set(kind, (counts.get(kind) ?? 0) + count);
        }
      }
      return counts;
    },
    /** One variant's series (press, controller, seed) with their points, dearest budget first. */
    series(variant) {
      const found = new Map();
      for (const point of points.filter((p) => p.variant === variant)) {
        if (!found.has(point.series)) found.set(point.series, { ...point, name: point.series, points: [] });
        found.get(point.series).points.push(point);
      }
      const all = [...found.values()].sort((a, b) => d3.ascending(a.name, b.name));
      for (const one of all) one.points.sort(byBudget);
      return all;
    },
  };
}

/** The budgets of a variant's points: {key, label, kind, asked}, fractions before tokens, dearest first. */
function budgetsOf(points) {
  const found = new Map();
  for (const p of points) {
    found.set(budgetKey(p), { key: budgetKey(p), label: askedLabel(p), kind: p.kind, asked: p.asked });
  }
  return [...found.values()].sort((a, b) => d3.ascending(a.kind, b.kind) || b.asked - a.asked);
}
