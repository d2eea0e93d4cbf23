// Layout: ELK in a worker, one open group at a time from the inside out. What was laid out once is kept, so
// that opening a group lays out that group and those around it, and alike groups are laid out once.
"use strict";
{
  const HEADER = 34,
    PAD = 14;
  const OPTIONS = {
    "elk.algorithm": "layered",
    "elk.direction": "DOWN",
    "elk.edgeRouting": "ORTHOGONAL",
    "elk.spacing.nodeNode": "18",
    "elk.spacing.edgeNode": "12",
    "elk.spacing.edgeEdge": "9",
    "elk.layered.spacing.nodeNodeBetweenLayers": "26",
    "elk.layered.spacing.edgeNodeBetweenLayers": "11",
    "elk.layered.spacing.edgeEdgeBetweenLayers": "7",
    "elk.layered.considerModelOrder.strategy": "PREFER_NODES",
    "elk.layered.nodePlacement.bk.fixedAlignment": "BALANCED",
    "elk.layered.thoroughness": "5",
    "elk.padding": `[top=${HEADER + 8},left=${PAD},bottom=${PAD},right=${PAD}]`,
  };
  const known = new Map();
  const elk = engine(); // the worker starts while the rest of the page is read

  function engine() {
    const code = document.getElementById("irloom-worker").textContent;
    const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    return new ELK({ workerFactory: () => new Worker(url) });
  }

  /** Sizes and places, relative to the box around: `x`, `y`, `w`, `h`, `ports`, and `points` of edges. */
  async function layout(box, size) {
    await Promise.all(box.children.filter((c) => c.open).map((c) => layout(c, size)));
    for (const child of box.children) if (!child.open) Object.assign(child, size(child.item));
    const edges = [...box.edges.values()];
    const graph = describe(box, edges);
    const key = JSON.stringify(graph);
    if (!known.has(key)) known.set(key, elk.layout(graph));
    const {
      children: [found],
    } = await known.get(key);
    Object.assign(box, { w: found.width, h: found.height, ports: new Map() });
    ports(box).forEach(([name], i) => box.ports.set(name, [found.ports[i].x, found.ports[i].y]));
    found.children.forEach((place, i) => {
      const child = box.children[i];
      Object.assign(child, { x: place.x, y: place.y });
      if (!child.open) {
        child.ports = new Map();
        ports(child).forEach(([name], k) => child.ports.set(name, [place.ports[k].x, place.ports[k].y]));
      }
    });
    found.edges.forEach((route, i) => {
      const [section] = route.sections;
      edges[i].points = [section.startPoint, ...(section.bendPoints || []), section.endPoint].map((p) => [p.x, p.y]);
    });
  }

  const ports = (box) => [
    ...[...box.ins.keys()].map((value) => [`i${value}`, "NORTH"]),
    ...[...box.outs.keys()].map((value) => [`o${value}`, "SOUTH"]),
  ];

  /** A box as ELK's input, with numbers for names, so that alike boxes are described alike. */
  function describe(box, edges) {
    const index = new Map([[box, "g"], ...box.children.map((child, i) => [child, `c${i}`])]);
    const numbers = new Map([...index.keys()].map((b) => [b, new Map(ports(b).map(([name], i) => [name, i]))]));
    const end = (b, side, value) => `${index.get(b)}p${numbers.get(b).get(side + value)}`;
    return {
      id: "root",
      layoutOptions: OPTIONS,
      children: [
        {
          id: "g",
          layoutOptions: { ...OPTIONS, "elk.portConstraints": "FIXED_SIDE" },
          ports: portsOf(box, "g", false),
          children: box.children.map((child, i) => ({
            id: `c${i}`,
            width: child.w,
            height: child.h,
            layoutOptions: { "elk.portConstraints": child.open ? "FIXED_POS" : "FIXED_SIDE" },
            ports: portsOf(child, `c${i}`, child.open),
          })),
          edges: edges.map((e, i) => ({
            id: `e${i}`,
            sources: [end(e.from, e.fromSide, e.value)],
            targets: [end(e.to, e.toSide, e.value)],
          })),
        },
      ],
    };
  }

  function portsOf(box, id, fixed) {
    return ports(box).map(([name, side], i) => {
      const at = fixed ? { x: box.ports.get(name)[0], y: box.ports.get(name)[1] } : {};
      return { id: `${id}p${i}`, width: 0, height: 0, ...at, layoutOptions: { "elk.port.side": side } };
    });
  }

  /** Turn relative places into those on the canvas. */
  function settle(box, x = 0, y = 0) {
    Object.assign(box, { left: x, top: y });
    for (const edge of box.edges.values()) edge.path = edge.points.map(([px, py]) => [px + x, py + y]);
    for (const child of box.children) settle(child, x + child.x, y + child.y);
  }

  Object.assign(irloom, { layout, settle, HEADER });
}
