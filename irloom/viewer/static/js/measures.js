// What an item costs, how far off it is, and what a pass did to it; of groups the sum of what is inside.
"use strict";
{
  const { data, price, text } = irloom;
  const COSTS = ["time", "bytes", "flops"];
  const SIGNS = { added: "+", removed: "−", replaced: "⇄", changed: "~", retyped: "τ", moved: "→" };

  /** What an item costs in a step, with all that it stands for: other layers, and as often as loops run it. */
  function sum(shown, item, workload) {
    const key = `${workload}:${item.key}`;
    if (!shown.sums.has(key)) shown.sums.set(key, summed(shown, item, workload));
    return shown.sums.get(key);
  }

  function summed(shown, item, workload) {
    const all = { time: 0, bytes: 0, flops: 0, unknown: 0, runs: 0 };
    for (const leaf of item.isGroup ? item.leaves : [item]) {
      const runs = leaf.times * shown.stands[leaf.id];
      if (!leaf.row || !runs) continue;
      const one = price(leaf.row[8], workload);
      all.runs += runs;
      if (!one) all.unknown += 1;
      else for (const kind of COSTS) all[kind] += (one[kind] || 0) * runs;
    }
    return all;
  }

  function share(shown, item, kind, workload) {
    const all = sum(shown, shown.scene.root, workload)[kind];
    return all ? sum(shown, item, workload)[kind] / all : 0;
  }

  /** The relative error of a value that exists before and after a pass; of a group the largest. Null: not known. */
  function error(item, step) {
    const errors = step >= 0 && data.steps[step].errors;
    if (!errors) return null;
    if (!errorsOf.has(step)) {
      errorsOf.set(step, new Map(Object.entries(errors).map(([fn, rows]) => [fn, new Map(rows)])));
    }
    const found = (item.isGroup ? item.leaves : [item]).map((leaf) => {
      const known = leaf.row && errorsOf.get(step).get(leaf.fn);
      const value = known && known.get(leaf.name);
      return value === undefined || value === null ? -1 : value;
    });
    const worst = Math.max(-1, ...found);
    return worst < 0 ? null : worst;
  }
  const errorsOf = new Map();

  /** What a step did to a leaf, seen before or after it, such as "added"; null where it did nothing. */
  function mark(leaf, step, side) {
    const found = marked(leaf, step, side);
    return found && found.kind;
  }

  /** The function and name of what a leaf is on the other side of a step; null where it is the same there. */
  function twin(leaf, step, side) {
    const found = marked(leaf, step, side);
    return found && found.twin;
  }

  function marked(leaf, step, side) {
    if (step < 0 || !leaf.row) return null;
    const key = `${step}.${side}`;
    if (!sides.has(key)) {
      const functions = Object.entries(data.steps[step][side]);
      sides.set(
        key,
        new Map(functions.map(([fn, rows]) => [fn, new Map(rows.map(([name, kind, twin]) => [name, { kind, twin }]))])),
      );
    }
    const of = sides.get(key).get(leaf.fn);
    return (of && of.get(leaf.name)) || null;
  }
  const sides = new Map();

  /** How many leaves of an item bear each mark; alike ones count once. */
  function marks(shown, item, step, side) {
    const counts = {};
    for (const leaf of item.isGroup ? item.leaves : [item]) {
      const kind = shown.stands[leaf.id] ? mark(leaf, step, side) : null;
      if (kind) counts[kind] = (counts[kind] || 0) + 1;
    }
    return counts;
  }

  function showMarks(counts) {
    return Object.keys(SIGNS)
      .filter((k) => counts[k])
      .map((k) => `${SIGNS[k]}${counts[k]}`)
      .join(" ");
  }

  const madeBy = (leaf) => (leaf.row ? text(leaf.row[7]) || "frontend" : "");

  Object.assign(irloom, { sum, share, error, mark, twin, marks, showMarks, madeBy, SIGNS, COSTS });
}
