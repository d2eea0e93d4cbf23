// What of a scene is on the canvas, given which groups are open: boxes in boxes, and at each level the edges
// between them. An edge that enters or leaves an open group passes a port on its border.
"use strict";
{
  const { typeOf, types } = irloom;

  /** `open` and `unfolded` hold keys of groups; `stands[id]` is how many alike leaves a leaf stands for. */
  class Shown {
    constructor(scene, open, unfolded) {
      Object.assign(this, { scene, open, unfolded });
      this.first = scene.leaves.map((leaf) => this.representative(leaf));
      this.stands = new Int32Array(scene.leaves.length);
      for (const leaf of this.first) this.stands[leaf.id] += 1;
      this.sums = new Map();
      [this.boxes, this.at] = [new Map(), new Map()];
      this.root = this.box(scene.root, null);
      this.route();
    }

    isFolded(group) {
      return group.kind === "fold" && !this.unfolded.has(group.key);
    }

    /** The leaf that stands for this one: that of the first member of every fold around it. */
    representative(leaf) {
      for (let again = true; again;) {
        again = false;
        for (const [fold, { member, position }] of leaf.folds || []) {
          if (member === 0 || !this.isFolded(fold)) continue;
          leaf = fold.leavesOf[0][position];
          again = true;
          break;
        }
      }
      return leaf;
    }

    /** The groups around an item that the canvas shows, innermost first. */
    around(item) {
      const found = [];
      for (let group = item.parent; group; group = group.parent) if (!this.isSkipped(group)) found.push(group);
      return found;
    }

    /** A fold shows what is in its first member, not the member; unfolded, all members and no fold of some. */
    isSkipped(group) {
      const around = group.parent;
      if (around && around.kind === "fold" && around.shown === null && this.isFolded(around)) return true;
      return Boolean(group.owner && !this.isFolded(group.owner));
    }

    children(group) {
      return this.isFolded(group) ? irloom.firstMember(group) : group.children;
    }

    isOpen(item) {
      return item.isGroup && (item === this.scene.root || this.open.has(item.key));
    }

    box(item, parent) {
      const made = { item, parent, open: this.isOpen(item), depth: parent ? parent.depth + 1 : 0 };
      Object.assign(made, { children: [], edges: new Map(), ins: new Map(), outs: new Map() });
      this.boxes.set(item.key, made);
      if (made.open) made.children = this.children(item).map((child) => this.box(child, made));
      else if (item.isGroup) for (const leaf of item.leaves) this.place(this.first[leaf.id], made);
      else this.place(item, made);
      return made;
    }

    place(leaf, box) {
      this.at.set(leaf, box);
    }

    route() {
      const seen = new Set();
      for (const { from, out, to, at } of this.scene.edges) {
        if (this.carried(from, to)) continue;
        const a = this.first[from.id],
          b = this.first[to.id],
          key = `${a.id}.${out}>${b.id}.${at}`;
        if (seen.has(key)) continue;
        seen.add(key);
        this.connect(this.at.get(a), this.at.get(b), { leaf: a, out, to: b });
      }
    }

    /** From one member of a fold to the next: what layers hand on, not shown while they are one. */
    carried(from, to) {
      for (const [fold, { member }] of from.folds || []) {
        const other = to.folds && to.folds.get(fold);
        if (other && other.member !== member && this.isFolded(fold)) return true;
      }
      return false;
    }

    connect(source, target, { leaf, out, to }) {
      if (!source || !target || source === target) return;
      const value = `${leaf.id}.${out}`,
        kind = types[typeOf({ leaf, out })].kind;
      let up = source,
        down = target;
      const climb = (box, side) => {
        box[side].set(value, kind);
        return box.parent;
      };
      const rises = [],
        falls = [];
      while (up.depth > down.depth) {
        rises.push(up);
        up = climb(up, "outs");
      }
      while (down.depth > up.depth) {
        falls.push(down);
        down = climb(down, "ins");
      }
      while (up.parent !== down.parent) {
        rises.push(up);
        up = climb(up, "outs");
        falls.push(down);
        down = climb(down, "ins");
      }
      up.outs.set(value, kind);
      down.ins.set(value, kind);
      const flow = [source.item.key, target.item.key];
      this.segment(up.parent, [up, "o"], [down, "i"], value, kind, flow, down === target);
      for (const box of rises) this.segment(box.parent, [box, "o"], [box.parent, "o"], value, kind, flow, false);
      for (const box of falls)
        this.segment(box.parent, [box.parent, "i"], [box, "i"], value, kind, flow, box === target);
    }

    segment(level, [from, fromSide], [to, toSide], value, kind, flow, last) {
      const key = `${from.item.key}>${to.item.key}>${value}`;
      if (!level.edges.has(key)) {
        level.edges.set(key, { key, level, from, fromSide, to, toSide, value, kind, last, flows: new Set() });
      }
      level.edges.get(key).flows.add(flow);
    }
  }

  irloom.Shown = Shown;
}
