// What a pane shows as an SVG file.
"use strict";
{
  const { look, title, lines, times, HEADER, LINE, FONTS } = irloom;
  const NS = "http://www.w3.org/2000/svg";

  /** An SVG element; text never becomes markup. */
  function s(tag, given, ...children) {
    const made = document.createElementNS(NS, tag);
    for (const [key, value] of Object.entries(given)) made.setAttribute(key, value);
    made.append(...children.flat(Infinity).filter(Boolean));
    return made;
  }

  /** The pane's drawing as SVG text. */
  function toSvg(pane) {
    const { shown, how } = pane;
    const colours = irloom.COLOURS[how.theme];
    const boxes = [...shown.boxes.values()].filter((box) => box.parent).sort((a, b) => a.depth - b.depth);
    const edges = [...shown.boxes.values()].flatMap((box) => [...box.edges.values()]);
    const [width, height] = [Math.ceil(shown.root.w), Math.ceil(shown.root.h)];
    const picture = s(
      "svg",
      { xmlns: NS, width, height, viewBox: `0 0 ${width} ${height}` },
      s("defs", {}, arrow(colours)),
      s("rect", { width: "100%", height: "100%", fill: colours.frameAlt }),
      boxes.filter((box) => box.open).map((box) => frame(box, colours)),
      edges.map((edge) => route(edge, colours)),
      boxes
        .filter((box) => box.open)
        .map((box) => words(title(box.item, true), box, HEADER / 2 + 4.5, "title", colours.ink)),
      boxes.filter((box) => !box.open).map((box) => closed(box, look(box.item, { ...how, shown }))),
    );
    return new XMLSerializer().serializeToString(picture);
  }

  const arrow = ({ edge }) =>
    s(
      "marker",
      { id: "end", viewBox: "0 0 6 6", refX: 6, refY: 3, markerWidth: 5, markerHeight: 5, orient: "auto" },
      s("path", { d: "M0 0L6 3L0 6z", fill: edge }),
    );

  const words = (text, { left, top }, down, font, ink) =>
    s("text", { x: left + 12, y: top + down, fill: ink, style: `font:${FONTS[font]}` }, text);

  const rect = ({ left, top, w, h }, fill, stroke, off = 0) =>
    s("rect", { x: left + off, y: top + off, width: w, height: h, rx: 7, fill, stroke });

  function frame(box, colours) {
    return rect(box, box.depth % 2 ? colours.frame : colours.frameAlt, colours.line);
  }

  function closed(box, { fill, border, ink, badge }) {
    const right = { x: box.left + box.w - 10, y: box.top + 20, "text-anchor": "end", fill: ink };
    return [
      times(box.item) > 1 && box.item.isGroup && rect(box, fill, border, 5),
      rect(box, fill, border),
      words(title(box.item, false), box, 20.5, "title", ink),
      lines(box.item).map((line, i) => words(line, box, 37 + i * LINE, "small", ink)),
      badge && s("text", { ...right, style: `font:${FONTS.small}` }, badge),
    ];
  }

  function route({ path, kind, last }, colours) {
    const d = path.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    const stroke = kind === "cache" ? colours.cache : kind === "opaque" ? colours.opaque : colours.edge;
    const dashes = kind === "opaque" ? { "stroke-dasharray": "4 3" } : {};
    return s("path", {
      d,
      fill: "none",
      stroke,
      "stroke-width": 1.3,
      ...dashes,
      ...(last && { "marker-end": "url(#end)" }),
    });
  }

  /** Hand the drawing of a pane to the reader, as a file named after the model. */
  function save(pane, model) {
    const href = URL.createObjectURL(new Blob([toSvg(pane)], { type: "image/svg+xml" }));
    irloom.h("a", { href, download: `${model.replace(/[^\w.-]+/g, "_")}.svg` }).click();
    setTimeout(() => URL.revokeObjectURL(href), 1000);
  }

  irloom.save = save;
}
