// Alike siblings become one: layers 0 to 31 of a program that is not outlined yet, calls in a row.
"use strict";
{
  const MOST_PERIOD = 8;

  /** Fold runs among the children of `group` and of the modules below it. */
  function fold(group) {
    for (const child of group.children) if (child.kind === "module") fold(child);
    const shapes = group.children.map((c) => (repeats(c) ? shape(c) : null));
    const children = [];
    for (let i = 0; i < group.children.length;) {
      const run = longest(shapes, i);
      if (run) {
        children.push(folded(group, group.children.slice(i, i + run.period * run.times), run.period));
        i += run.period * run.times;
      } else {
        children.push(group.children[i]);
        i += 1;
      }
    }
    irloom.replaceChildren(group, children);
  }

  /** Only what a number or a call tells apart may be alike: `layers.3`, `layer[3]`. */
  function repeats(item) {
    return item.isGroup && (item.kind === "call" || (item.kind === "module" && parts(item.path).includes("#")));
  }

  const parts = (path) => path.split(".").map((part) => (/^\d+$/.test(part) ? "#" : part));

  function longest(shapes, i) {
    let best = null;
    for (let period = 1; period <= MOST_PERIOD && i + 2 * period <= shapes.length; period += 1) {
      let n = 0;
      while (shapes[i + n] !== null && i + period + n < shapes.length && shapes[i + n] === shapes[i + period + n])
        n += 1;
      const times = Math.floor(n / period) + 1;
      if (times > 1 && (!best || period * times > best.period * best.times)) best = { period, times };
    }
    return best;
  }

  function folded(parent, items, period) {
    const made = new irloom.Group(
      "fold",
      `${items[0].key}..${period}`,
      label(items[0], items[items.length - 1]),
      parent,
    );
    made.members = [];
    for (let i = 0; i < items.length; i += period) made.members.push(items.slice(i, i + period));
    irloom.replaceChildren(made, items);
    made.leavesOf = made.members.map((m) => m.flatMap((g) => g.leaves).sort((a, b) => a.id - b.id));
    made.leavesOf.forEach((leaves, member) =>
      leaves.forEach((leaf, position) => {
        (leaf.folds = leaf.folds || new Map()).set(made, { member, position });
      }),
    );
    made.shown = period === 1 ? null : innerFolds(made);
    return made;
  }

  /** The first member of a fold with a longer period may have runs of its own: five alike, then one other. */
  function innerFolds(made) {
    const holder = new irloom.Group("module", made.key, "", made);
    holder.children = made.members[0];
    fold(holder);
    for (const child of holder.children) {
      child.parent = made;
      if (child.kind === "fold") child.owner = made;
    }
    return holder.children;
  }

  /** What a fold shows while it is folded: its first member. */
  const firstMember = (made) => made.shown || made.members[0][0].children;

  function label(first, last) {
    if (first.kind === "call") {
      const numbered = /^\d+$/.test(first.index) && /^\d+$/.test(last.index);
      return numbered ? `${first.label}[${first.index}–${last.index}]` : first.label;
    }
    const words = first.path.split("."),
      others = last.path.split(".");
    const at = words.findLastIndex((word, i) => /^\d+$/.test(word) && word !== others[i]);
    return at < 0 ? first.label : words.slice(Math.max(at - 1, 0), at + 1).join(".") + `–${others[at]}`;
  }

  /** What two groups have in common when they are alike: ops, attributes, types, and how these are wired. */
  function shape(group) {
    const inside = new Map(group.leaves.map((leaf, i) => [leaf, i])),
      outside = new Map();
    const wire = ({ literal, leaf, out, weight, name }) => {
      if (literal !== undefined) return `=${literal}`;
      if (weight) return `w${weight[1]}`;
      if (!leaf) return `?${name}`;
      if (inside.has(leaf)) return `${inside.get(leaf)}.${out}`;
      const key = `${leaf.id}.${out}`;
      if (!outside.has(key)) outside.set(key, outside.size);
      return `e${outside.get(key)}`;
    };
    const prefix = group.path === undefined ? 0 : group.path.length;
    const rows = group.leaves.map((leaf) => {
      const [, op, , attrs, results, path] = leaf.row;
      const below = group.kind === "call" ? path : irloom.text(path).slice(prefix);
      return [op, attrs, results.map((r) => r[1]), leaf.args.map(wire), below].join("|");
    });
    const name = group.path === undefined ? group.fn : parts(group.path).join(".");
    return `${group.kind}:${name}:${rows.join("\n")}`;
  }

  Object.assign(irloom, { fold, firstMember });
}
