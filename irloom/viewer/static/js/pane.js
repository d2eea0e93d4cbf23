// One canvas: a scene laid out and drawn with cytoscape. Two of them stand side by side.
"use strict";
{
  const { look, title, lines, size, HEADER, LINE } = irloom;

  class Pane {
    /** `on` has `select(key)`, `toggle(key)`, `ready()`. */
    constructor(element, side, on) {
      Object.assign(this, { element, side, on, shown: null, turn: 0 });
      this.cy = cytoscape({
        container: element,
        minZoom: 0.02,
        maxZoom: 2.5,
        autoungrabify: true,
        boxSelectionEnabled: false,
        selectionType: "single",
        layout: { name: "preset" },
        style: irloom.sheet("light"),
      });
      this.cy.autounselectify(true);
      this.cy.on("tap", (event) => this.tapped(event));
      this.cy.on("dbltap", "node", (event) => this.doubleTapped(event));
      this.cy.on("mousemove", (event) => this.hover(event));
    }

    /** Show a state; `how` says what is open, how it is coloured, and which step's marks it bears. */
    async show(scene, how) {
      const turn = (this.turn += 1);
      const shown = new irloom.Shown(scene, how.open, how.unfolded);
      await irloom.layout(shown.root, size);
      if (turn !== this.turn) return;
      irloom.settle(shown.root);
      const anchor = this.anchor(shown, how.anchor);
      Object.assign(this, { shown, how, scene });
      this.draw();
      this.move(anchor, shown);
    }

    /** Where a box is now that is also in what comes, so that it can stay there. */
    anchor(next, wanted) {
      if (!this.shown) return null;
      const keys = [wanted, this.how.selected, ...[...this.shown.boxes.keys()]];
      const key = keys.find((k) => k && k !== this.shown.root.item.key && this.shown.boxes.has(k) && next.boxes.has(k));
      if (!key) return null;
      const { left, top } = this.shown.boxes.get(key),
        zoom = this.cy.zoom(),
        pan = this.cy.pan();
      return { key, x: left * zoom + pan.x, y: top * zoom + pan.y };
    }

    move(anchor, shown) {
      if (!anchor) return this.fit();
      const { left, top } = shown.boxes.get(anchor.key),
        zoom = this.cy.zoom();
      this.cy.pan({ x: anchor.x - left * zoom, y: anchor.y - top * zoom });
      return undefined;
    }

    draw() {
      const elements = [];
      for (const box of this.shown.boxes.values()) if (box.parent) this.drawBox(box, elements);
      for (const box of this.shown.boxes.values()) {
        let n = 0;
        for (const edge of box.edges.values()) elements.push(this.drawEdge(edge, `${box.item.key}:${(n += 1)}`));
      }
      this.cy.batch(() => {
        this.cy.elements().remove();
        this.cy.add(elements);
      });
      if (this.theme !== this.how.theme) this.cy.style(irloom.sheet(this.how.theme));
      this.theme = this.how.theme;
      this.highlight(this.how.selected);
    }

    drawBox(box, out) {
      const { item, left, top, w, h, depth, open } = box,
        z = depth * 10;
      const counts = irloom.marks(this.shown, item, this.how.step, this.side);
      const kinds = Object.keys(counts);
      const seen = look(item, { ...this.how, shown: this.shown });
      seen.ground = irloom.COLOURS[this.how.theme][depth % 2 ? "frame" : "frameAlt"];
      const middle = { x: left + w / 2, y: top + h / 2 };
      const label = (kind, words, at, width, height, ink = seen.ink) =>
        out.push({
          data: {
            id: `${kind}:${item.key}`,
            label: words,
            w: width,
            h: height,
            z: z + (open ? 17 : 2),
            ink,
            ground: open ? seen.ground : seen.fill,
          },
          position: at,
          classes: kind,
        });
      const classes = [open ? "frame" : "box", item.kind];
      if (!open && irloom.times(item) > 1) classes.push("stack");
      if (!open && kinds.length) classes.push(kinds.length === 1 ? kinds[0] : "changed");
      const base = {
        id: `b:${item.key}`,
        key: item.key,
        w,
        h,
        z,
        depth,
        fill: seen.fill,
        border: seen.border,
      };
      out.push({ data: base, position: middle, classes: classes.join(" ") });
      const noted = item.isGroup ? irloom.showMarks(counts) : kinds.map((kind) => irloom.SIGNS[kind]).join(" ");
      const name = title(item, open),
        ink = open ? irloom.COLOURS[this.how.theme].ink : seen.ink;
      const wide = irloom.width(name, "title");
      const boundary = item.kind === "input" || item.kind === "output";
      const x = boundary ? middle.x : left + 12 + wide / 2;
      label("title", name, { x, y: top + (open ? HEADER / 2 : 16) }, wide + 4, 16, ink);
      if (!open) {
        const rows = lines(item);
        const words = Math.max(...rows.map((row) => irloom.width(row, "small")));
        label(
          "small",
          rows.join("\n"),
          { x: boundary ? middle.x : left + 12 + words / 2, y: top + 26 + (LINE * rows.length) / 2 },
          words,
          12,
        );
      }
      const badge = [noted, seen.badge].filter(Boolean).join("  ");
      if (badge) {
        const room = irloom.width(badge, "small");
        label("badge", badge, { x: left + w - 10 - room / 2, y: top + (open ? HEADER / 2 : 16) }, room, 14, ink);
      }
    }

    drawEdge(edge, id) {
      const { from, to, path, kind, last, level } = edge;
      const centre = (b) => [b.left + b.w / 2, b.top + b.h / 2];
      const [a, b] = [path[0], path[path.length - 1]],
        [ca, cb] = [centre(from), centre(to)];
      const [dx, dy] = [b[0] - a[0], b[1] - a[1]],
        square = dx * dx + dy * dy || 1,
        long = Math.sqrt(square);
      const bends = path.slice(1, -1).map(([x, y]) => [x - a[0], y - a[1]]);
      const classes = [kind === "cache" || kind === "opaque" ? kind : "value"];
      if (last) classes.push("last");
      return {
        data: {
          id: `e:${id}`,
          source: `b:${from.item.key}`,
          target: `b:${to.item.key}`,
          z: level.depth * 10 + 5,
          curve: bends.length ? "round-segments" : "straight",
          weights: bends.map(([x, y]) => (x * dx + y * dy) / square),
          distances: bends.map(([x, y]) => (y * dx - x * dy) / long),
          start: `${a[0] - ca[0]}px ${a[1] - ca[1]}px`,
          end: `${b[0] - cb[0]}px ${b[1] - cb[1]}px`,
          flows: edge.flows,
        },
        classes: classes.join(" "),
      };
    }

    /** Mark what is selected, what it reads and what reads it. */
    highlight(key) {
      this.how.selected = key;
      this.cy.batch(() => {
        this.cy.nodes().removeClass("chosen");
        this.cy.edges().removeClass("into from");
        const box = key && this.shown.boxes.get(key);
        if (!box || !box.parent) return;
        this.cy.$id(`b:${key}`).addClass("chosen");
        const within = new Set([key]);
        if (box.open)
          for (const other of this.shown.boxes.keys())
            if (isWithin(this.shown.boxes.get(other), box)) within.add(other);
        for (const edge of this.cy.edges()) {
          for (const flow of edge.data("flows")) {
            const [from, to] = flow;
            if (within.has(to) && !within.has(from)) edge.addClass("into");
            if (within.has(from) && !within.has(to)) edge.addClass("from");
          }
        }
      });
    }

    recolour(how) {
      Object.assign(this.how, how);
      this.draw();
    }

    fit() {
      this.cy.resize();
      this.cy.fit(undefined, 28);
      if (this.cy.zoom() > 1.1) {
        this.cy.zoom(1.1);
        this.cy.center();
      }
      const tall = this.cy.elements().boundingBox();
      if (this.cy.zoom() < 0.55) this.readable(tall);
    }

    /** A program that is too long to be read as a whole is shown from its top. */
    readable(bounds) {
      const zoom = Math.max(Math.min((this.cy.width() - 56) / bounds.w, 0.85), 0.45);
      this.cy.zoom(zoom);
      this.cy.pan({
        x: this.cy.width() / 2 - ((bounds.x1 + bounds.x2) / 2) * zoom,
        y: 28 - bounds.y1 * zoom,
      });
    }

    zoom(by) {
      const middle = { x: this.cy.width() / 2, y: this.cy.height() / 2 };
      this.cy.zoom({ level: this.cy.zoom() * by, renderedPosition: middle });
    }

    /** Where the middle of a box's title is in the window, in pixels. */
    where(key) {
      const box = this.shown.boxes.get(key);
      const pan = this.cy.pan();
      const zoom = this.cy.zoom();
      const frame = this.element.getBoundingClientRect();
      return [frame.x + pan.x + (box.left + box.w / 2) * zoom, frame.y + pan.y + (box.top + 16) * zoom];
    }

    whole() {
      this.cy.resize();
      this.cy.fit(undefined, 28);
    }

    /** Bring a box into view. */
    reveal(key) {
      const box = this.shown && this.shown.boxes.get(key);
      if (!box) return;
      const zoom = Math.min(Math.max(this.cy.zoom(), 0.7), 1.3);
      const high = Math.min(box.h, this.cy.height() / zoom - 40);
      this.cy.zoom(zoom);
      this.cy.pan({
        x: this.cy.width() / 2 - (box.left + box.w / 2) * zoom,
        y: this.cy.height() / 2 - (box.top + high / 2) * zoom,
      });
    }

    isInView(key) {
      const box = this.shown && this.shown.boxes.get(key);
      if (!box) return false;
      const { x1, y1, x2, y2 } = this.cy.extent();
      return box.left >= x1 && box.left + box.w <= x2 && box.top >= y1 && box.top + Math.min(box.h, 60) <= y2;
    }

    tapped(event) {
      if (event.target === this.cy) return this.on.select(null);
      const key = event.target.data("key");
      if (!key) return undefined;
      const box = this.shown.boxes.get(key);
      const { x, y } = event.position;
      const chevron = box.item.isGroup && x < box.left + 28 && y < box.top + HEADER;
      return chevron ? this.on.toggle(key) : this.on.select(key);
    }

    doubleTapped(event) {
      const box = this.shown.boxes.get(event.target.data("key"));
      if (box && box.item.isGroup) this.on.toggle(box.item.key);
    }

    hover(event) {
      const over = event.target !== this.cy && event.target.data && event.target.data("key");
      this.element.style.cursor = over ? "pointer" : "grab";
    }
  }

  function isWithin(box, outer) {
    for (let b = box; b; b = b.parent) if (b === outer) return true;
    return false;
  }

  irloom.Pane = Pane;
}
