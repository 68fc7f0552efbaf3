// Which words two answers do not share: the longest common subsequence of their words.

const MOST_WORDS = 1200;

/** Words with the white space after them. */
const wordsOf = (text) => text.match(/\S+\s*|\s+/g) ?? [];

/** For each word of both texts, whether the other one lacks it: {a: [[word, differs]], b: ...}. */
function wordDifferences(one, other) {
  const a = wordsOf(one), b = wordsOf(other);
  const same = (i, j) => a[i].trim() === b[j].trim();
  let start = 0;
  while (start < a.length && start < b.length && same(start, start)) start += 1;
  let end = 0;
  while (end < a.length - start && end < b.length - start && same(a.length - 1 - end, b.length - 1 - end)) end += 1;
  const inA = new Array(a.length).fill(false), inB = new Array(b.length).fill(false);
  const n = a.length - start - end, m = b.length - start - end;
  if (n > MOST_WORDS || m > MOST_WORDS) {
    inA.fill(true, start, a.length - end);
    inB.fill(true, start, b.length - end);
  } else {
    const width = m + 1;
    const common = new Uint16Array((n + 1) * width);
    for (let i = n - 1; i >= 0; i--) {
      for (let j = m - 1; j >= 0; j--) {
        common[i * width + j] = same(start + i, start + j)
          ? common[(i + 1) * width + j + 1] + 1
          : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
      }
    }
    let i = 0, j = 0;
    while (i < n || j < m) {
      if (i < n && j < m && same(start + i, start + j)) { i += 1; j += 1; }
      else if (j >= m || (i < n && common[(i + 1) * width + j] >= common[i * width + j + 1])) {
        inA[start + i] = true; i += 1;
      } else { inB[start + j] = true; j += 1; }
    }
  }
  return { a: a.map((w, k) => [w, inA[k]]), b: b.map((w, k) => [w, inB[k]]) };
}

/** Marked words as nodes: neighbours that differ are one `tag`. */
function marked(words, tag) {
  const nodes = [];
  let run = "", differs = false;
  const flush = () => {
    if (run) nodes.push(differs ? el(tag, {}, run) : run);
    run = "";
  };
  for (const [word, differing] of words) {
    if (differing !== differs) { flush(); differs = differing; }
    run += word;
  }
  flush();
  return nodes;
}
