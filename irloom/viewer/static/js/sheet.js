// The graph's style sheet, for light and dark.
"use strict";
{
  const SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif';
  const MONO = 'ui-monospace, "SF Mono", "Cascadia Mono", "DejaVu Sans Mono", Menlo, monospace';
  const COLOURS = {
    light: {
      ink: "#171a1f",
      soft: "#59616d",
      frame: "#f8f9fb",
      frameAlt: "#ffffff",
      line: "#cfd5dd",
      edge: "#8b95a3",
      accent: "#0b57d0",
      cache: "#0f8a7e",
      opaque: "#b3bac4",
      partial: "#b3261e",
      added: "#137333",
      removed: "#b3261e",
      replaced: "#9a6700",
      changed: "#9a6700",
      retyped: "#7b3fb5",
      moved: "#1a56c4",
      into: "#0b57d0",
      from: "#a3410a",
    },
    dark: {
      ink: "#eef0f3",
      soft: "#a9b1bd",
      frame: "#191c21",
      frameAlt: "#1e2127",
      line: "#3a414b",
      edge: "#7b8593",
      accent: "#8ab4f8",
      cache: "#4fd1c2",
      opaque: "#555d69",
      partial: "#ff8a80",
      added: "#5fd38d",
      removed: "#ff8a80",
      replaced: "#f2c14e",
      changed: "#f2c14e",
      retyped: "#cf9ef8",
      moved: "#8ab4f8",
      into: "#8ab4f8",
      from: "#ffb07c",
    },
  };

  function sheet(theme) {
    const c = COLOURS[theme];
    const marks = ["added", "removed", "replaced", "changed", "retyped", "moved"].map((kind) => ({
      selector: `node.${kind}`,
      style: { "border-color": c[kind], "border-width": 2.5 },
    }));
    return [
      { selector: "core", style: { "active-bg-opacity": 0, "selection-box-opacity": 0 } },
      {
        selector: "node",
        style: {
          width: "data(w)",
          height: "data(h)",
          shape: "round-rectangle",
          "corner-radius": 7,
          "z-index-compare": "manual",
          "z-index": "data(z)",
          "overlay-opacity": 0,
          "font-family": SANS,
        },
      },
      {
        selector: "node.box",
        style: {
          "background-color": "data(fill)",
          "border-width": 1.2,
          "border-color": "data(border)",
          "text-events": "no",
        },
      },
      { selector: "node.input, node.output", style: { "corner-radius": 20 } },
      {
        selector: "node.stack",
        style: { ghost: "yes", "ghost-offset-x": 5, "ghost-offset-y": 5, "ghost-opacity": 0.55 },
      },
      {
        selector: "node.frame",
        style: {
          "background-color": (e) => (e.data("depth") % 2 ? c.frame : c.frameAlt),
          "border-width": 1.2,
          "border-color": c.line,
          "corner-radius": 10,
        },
      },
      ...marks,
      { selector: "node.faded", style: { opacity: 0.45 } },
      {
        selector: "node.chosen",
        style: {
          "underlay-color": c.accent,
          "underlay-opacity": 0.45,
          "underlay-padding": 6,
          "underlay-shape": "round-rectangle",
        },
      },
      {
        selector: "node.title, node.small, node.badge",
        style: {
          "background-opacity": 0,
          "border-width": 0,
          events: "no",
          label: "data(label)",
          color: "data(ink)",
          "text-halign": "center",
          "text-valign": "center",
          "text-wrap": "wrap",
          "text-max-width": 1000,
          "min-zoomed-font-size": 4,
        },
      },
      {
        selector: "node.title",
        style: {
          "font-size": 13,
          "font-weight": 600,
          "text-background-color": "data(ground)",
          "text-background-opacity": 1,
          "text-background-padding": 2,
        },
      },
      {
        selector: "node.small",
        style: {
          "font-size": 11,
          "font-family": MONO,
          "line-height": 1.36,
          "text-justification": "left",
          "text-opacity": 0.82,
          "min-zoomed-font-size": 6,
        },
      },
      { selector: "node.badge", style: { "font-size": 11, "font-weight": 600 } },
      {
        selector: "edge",
        style: {
          width: 1.3,
          "line-color": c.edge,
          "target-arrow-color": c.edge,
          "arrow-scale": 0.75,
          "curve-style": "data(curve)",
          "edge-distances": "endpoints",
          "segment-weights": (e) => e.data("weights"),
          "segment-distances": (e) => e.data("distances"),
          "segment-radii": 5,
          "source-endpoint": (e) => e.data("start"),
          "target-endpoint": (e) => e.data("end"),
          "z-index-compare": "manual",
          "z-index": "data(z)",
          events: "no",
          "overlay-opacity": 0,
        },
      },
      { selector: "edge.last", style: { "target-arrow-shape": "triangle" } },
      { selector: "edge.cache", style: { "line-color": c.cache, "target-arrow-color": c.cache, width: 1.7 } },
      {
        selector: "edge.opaque",
        style: { "line-color": c.opaque, "target-arrow-color": c.opaque, "line-style": "dashed" },
      },
      { selector: "edge.faded", style: { opacity: 0.35 } },
      {
        selector: "edge.into",
        style: { "line-color": c.into, "target-arrow-color": c.into, width: 2.4, opacity: 1 },
      },
      {
        selector: "edge.from",
        style: { "line-color": c.from, "target-arrow-color": c.from, width: 2.4, opacity: 1 },
      },
    ];
  }

  Object.assign(irloom, { sheet, COLOURS });
}
