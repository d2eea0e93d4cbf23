// What boxes say, and how large they are for it.
"use strict";
{
  const { ops, text, typeText } = irloom;
  const FONTS = {
    title: '600 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
    small: '11px ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, monospace',
  };
  const WIDEST = 300,
    LINE = 15;
  const pen = document.createElement("canvas").getContext("2d");
  const widths = new Map();

  function width(words, font) {
    const key = font + words;
    if (!widths.has(key)) {
      pen.font = FONTS[font];
      widths.set(key, pen.measureText(words).width);
    }
    return widths.get(key);
  }

  function cut(words) {
    if (width(words, "small") <= WIDEST) return words;
    let n = words.length;
    while (n > 8 && width(`${words.slice(0, n)}…`, "small") > WIDEST) n -= 1;
    return `${words.slice(0, n)}…`;
  }

  /** How often a group runs, where that is more than once: by its loop, or by how many it stands for. */
  function times(item) {
    if (item.kind === "fold") return item.members.length;
    return item.iterations;
  }

  function title(item, isOpen) {
    if (!item.isGroup) return item.label;
    const n = times(item);
    return `${isOpen ? "▾" : "▸"} ${item.label}${n > 1 ? `  ×${n}` : ""}`;
  }

  function lines(item) {
    if (item.isGroup) return [cut(contents(item))];
    if (!item.row) return [typeText(item.type)];
    const [first, ...others] = item.row[4];
    const more = others.length ? `, ${others.map((r) => text(r[0])).join(", ")}` : "";
    const shown = [cut(`${text(first[0])}${more}: ${typeText(first[1])}`)];
    const weights = item.args.filter((a) => a.weight).map((a) => typeText(a.weight[1]));
    if (weights.length) shown.push(cut(`w ${weights.join(" ")}`));
    return shown;
  }

  /** The ops of a group, most frequent first; of those inside of loops one each. */
  function contents(group) {
    const counts = new Map();
    for (const leaf of inside(group)) {
      if (leaf.row) counts.set(ops[leaf.row[1]].name, (counts.get(ops[leaf.row[1]].name) || 0) + 1);
    }
    const total = [...counts.values()].reduce((a, b) => a + b, 0);
    const top = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 3);
    const named = top.map(([name, n]) => (n > 1 ? `${name} ×${n}` : name)).join(", ");
    return `${total} ops: ${named}${counts.size > 3 ? ", …" : ""}`;
  }

  const inside = (group) => (group.kind === "fold" ? group.leavesOf[0] : group.leaves);

  const BADGE = 68;

  /** The size of a closed box. */
  function size(item) {
    const head = width(title(item, false), "title") + (item.kind === "input" || item.kind === "output" ? 0 : BADGE);
    const rows = lines(item);
    const wide = Math.max(head, ...rows.map((row) => width(row, "small")));
    return { w: Math.round(wide + 24), h: 31 + LINE * rows.length };
  }

  Object.assign(irloom, { title, lines, size, width, times, contents, FONTS, LINE });
}
