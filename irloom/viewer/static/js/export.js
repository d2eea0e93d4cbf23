// What a canvas shows as an SVG file.
"use strict";
{
  const { look, title, lines, times, HEADER, LINE, FONTS } = irloom;
  const escape = (words) => words.replace(/[&<>"]/g, (c) => `&#${c.charCodeAt(0)};`);

  /** The pane's drawing as SVG text. */
  function toSvg(pane) {
    const { shown, how } = pane, c = irloom.COLOURS[how.theme], out = [];
    const boxes = [...shown.boxes.values()].filter((b) => b.parent).sort((a, b) => a.depth - b.depth);
    for (const box of boxes) out.push(frame(box, how, shown, c, true));
    for (const box of shown.boxes.values()) for (const edge of box.edges.values()) out.push(route(edge, c));
    for (const box of boxes) if (!box.open) out.push(frame(box, how, shown, c, false));
    const [w, h] = [Math.ceil(shown.root.w), Math.ceil(shown.root.h)];
    const arrow = `<defs><marker id="a" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="5" markerHeight="5" orient="auto"><path d="M0 0L6 3L0 6z" fill="${c.edge}"/></marker></defs>`;
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${w}" height="${h}" viewBox="0 0 ${w} ${h}"><rect width="100%" height="100%" fill="${c.frameAlt}"/>${arrow}${out.join("")}</svg>`;
  }

  function frame(box, how, shown, c, behind) {
    const { item, left, top, w, h, open } = box;
    if (behind !== open) return "";
    const seen = look(item, { ...how, shown }), fill = open ? (box.depth % 2 ? c.frame : c.frameAlt) : seen.fill;
    const rows = open ? [] : lines(item);
    const name = `<text x="${left + 12}" y="${top + (open ? HEADER / 2 : 16) + 4.5}" style="font:${escape(FONTS.title)}" fill="${open ? c.ink : seen.ink}">${escape(title(item, open))}</text>`;
    const small = rows.map((row, i) => `<text x="${left + 12}" y="${top + 37 + i * LINE}" style="font:${escape(FONTS.small)}" fill="${seen.ink}">${escape(row)}</text>`);
    const badge = seen.badge ? `<text x="${left + w - 10}" y="${top + 20}" text-anchor="end" style="font:${escape(FONTS.small)}" fill="${open ? c.ink : seen.ink}">${escape(seen.badge)}</text>` : "";
    const rect = (d) => `<rect x="${left + d}" y="${top + d}" width="${w}" height="${h}" rx="7" fill="${fill}" stroke="${open ? c.line : seen.border}"/>`;
    return `${!open && times(item) > 1 ? rect(5) : ""}${rect(0)}${name}${badge}${small.join("")}`;
  }

  function route({ path, kind, last }, c) {
    const line = path.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    const stroke = kind === "cache" ? c.cache : kind === "opaque" ? c.opaque : c.edge;
    return `<path d="${line}" fill="none" stroke="${stroke}" stroke-width="1.3"${kind === "opaque" ? ' stroke-dasharray="4 3"' : ""}${last ? ' marker-end="url(#a)"' : ""}/>`;
  }

  /** Hand the file to the reader. */
  function save(words, name) {
    const link = irloom.h("a", { href: URL.createObjectURL(new Blob([words], { type: "image/svg+xml" })), download: name });
    link.click();
    URL.revokeObjectURL(link.href);
  }

  Object.assign(irloom, { toSvg, save });
}
