// Numbers and names as people read them.

const MINUS = "\u2212";
const known = (value) => value !== null && value !== undefined;

/** 0.58, −0.42, – for unknown. */
function fixed(value, digits = 2) {
  if (!known(value)) return "–";
  const text = Math.abs(value).toFixed(digits);
  return value < 0 && Number(text) !== 0 ? `${MINUS}${text}` : text;
}

const signed = (value, digits = 2) => (known(value) && value > 0 ? "+" : "") + fixed(value, digits);
/** .58 and 1: cells of the map have no room for more. */
const short = (text) => text.replace(/^([+\u2212]?)0\./, "$1.").replace(/^([+\u2212]?\d+)\.0+$/, "$1");
const interval = (low, high, form = fixed) =>
  known(low) && known(high) ? `[${form(low)}, ${form(high)}]` : "[n/a]";

function byteCount(value) {
  if (!known(value)) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (value >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${value >= 100 || at === 0 ? value.toFixed(0) : value.toPrecision(3)} ${units[at]}`;
}

const seconds = (value) =>
  !known(value) ? "–" : value === 0 ? "0" : value < 1 ? `${(1000 * value).toPrecision(3)} ms` : `${value.toPrecision(3)} s`;
const tokenRange = (bin) => `${bin.low.toLocaleString("en")}–${bin.high.toLocaleString("en")}`;
const binName = (variant, bin) =>
  bin === ALL_BINS ? "all lengths" : tokenRange(variant.bins.find((b) => b.bin === bin));
const plural = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;
const kindName = (kind) => kind.toLowerCase().replace("non_termination", "non-termination").replaceAll("_", " ");
const pointName = (point) => `${point.series} at ${point.label}`;
