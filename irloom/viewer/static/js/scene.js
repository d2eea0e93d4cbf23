// A state of the program as a scene: its op applications with calls expanded, what reads what, and the groups
// they form: calls and loops, then the modules of the source model, then runs of alike siblings.
"use strict";
{
  const { data, stmts, funcs, params, types, text, NODE, CALL, LOOP } = irloom;
  const MOST_CHILDREN = 100;
  const CHUNK = 50;

  class Group {
    constructor(kind, key, label, parent) {
      Object.assign(this, { kind, key, label, parent, children: [], isGroup: true, iterations: 1 });
    }

    /** All op applications inside, in the order of the program. */
    get leaves() {
      if (!this.known) {
        this.known = this.children.flatMap((c) => (c.isGroup ? c.leaves : [c]));
        this.known.sort((a, b) => a.id - b.id);
      }
      return this.known;
    }
  }

  class Builder {
    constructor(state) {
      this.leaves = [];
      this.edges = [];
      this.keys = new Set();
      this.byName = new Map(state.funcs.map((ref) => [funcs[ref].name, funcs[ref]]));
      this.root = new Group("func", "main", "main", null);
    }

    build() {
      const main = this.byName.get("main");
      const env = new Map();
      for (const ref of main.params) {
        const [name, type, , weight] = params[ref];
        if (weight) env.set(text(name), { weight: params[ref] });
        else env.set(text(name), { leaf: this.boundary("input", text(name), type), out: 0 });
      }
      const places = this.body(main, main.body, env, this.root, "main", 1);
      this.settle(this.root, places);
      for (const name of main.returns) {
        const source = env.get(text(name));
        const leaf = this.boundary("output", text(name), source.leaf ? typeOf(source) : 0);
        for (const each of source.slots ? source.slots.values() : [source]) this.connect(each, leaf, 0);
      }
    }

    boundary(kind, name, type) {
      const leaf = this.leaf(kind, null, "main", `main.${kind === "output" ? "return." : ""}${name}`, 1);
      Object.assign(leaf, { label: name, type, parent: this.root });
      this.root.children.push(leaf);
      return leaf;
    }

    leaf(kind, row, fn, wanted, times) {
      let key = wanted;
      for (let n = 2; this.keys.has(key); n += 1) key = `${wanted}#${n}`;
      this.keys.add(key);
      const leaf = { kind, row, fn, key, times, id: this.leaves.length, args: [], parent: null };
      this.leaves.push(leaf);
      return leaf;
    }

    connect(source, leaf, at) {
      if (source && source.leaf) this.edges.push({ from: source.leaf, out: source.out, to: leaf, at });
    }

    /** The statements of a function or loop; the groups and leaves they make, each with its module path. */
    body(fn, refs, env, parent, scope, times) {
      const places = [];
      for (const ref of refs) {
        const row = stmts[ref];
        if (row[0] === NODE) places.push(this.node(row, fn, env, scope, times));
        else if (row[0] === CALL) places.push(this.call(row, env, parent, scope, times, null));
        else places.push(this.loop(row, fn, env, parent, scope, times));
      }
      return places;
    }

    node(row, fn, env, scope, times) {
      const [, op, args, , results, path] = row;
      const name = text(results[0][0]);
      const leaf = this.leaf("node", row, fn.name, `${scope}.${name}`, times);
      Object.assign(leaf, { label: irloom.ops[op].name, name, type: results[0][1] });
      leaf.args = args.map((arg, at) => {
        if (arg === null || Array.isArray(arg)) return { literal: irloom.showArg(arg) };
        const source = env.get(text(arg)) || {};
        this.connect(source, leaf, at);
        return { name: text(arg), ...source };
      });
      results.forEach(([ref], out) => env.set(text(ref), { leaf, out }));
      return { item: leaf, path: text(path) };
    }

    call(row, env, parent, scope, times, loop) {
      const [, callee, index, args, slots, reads, results, path] = row;
      const fn = this.byName.get(text(callee));
      const at = text(index);
      const group = new Group("call", this.groupKey(`${scope}/${fn.name}${at ? `[${at}]` : ""}`), fn.name, parent);
      Object.assign(group, { fn: fn.name, index: at, loop });
      const given = [
        ...args.map((ref) => env.get(text(ref))),
        ...[...slots, ...reads].map(([stack, i]) => slot(env.get(text(stack)), text(i))),
      ];
      const inner = new Map();
      let n = 0;
      for (const ref of fn.params) {
        const [name, , , weight] = params[ref];
        inner.set(text(name), weight ? { weight: params[ref] } : given[n++]);
      }
      const places = this.body(fn, fn.body, inner, group, group.key, times);
      this.settle(group, places);
      const returned = fn.returns.map((ref) => inner.get(text(ref)));
      const plain = results.length - slots.length;
      results.slice(0, plain).forEach(([ref], i) => env.set(text(ref), returned[i]));
      slots.forEach(([stack, i], k) => {
        const held = env.get(text(stack));
        env.set(text(stack), { ...held, slots: new Map(held.slots).set(text(i), returned[plain + k]) });
      });
      return { item: group, path: text(path).replace(/\.?\{i\}$/, "") };
    }

    loop(row, fn, env, parent, scope, times) {
      const [, variable, start, stop, step, inits, names, yields, results, refs] = row;
      const count = Math.max(0, Math.ceil((stop - start) / step));
      const inner = new Map(env);
      names.forEach((ref, i) => inner.set(text(ref), env.get(text(inits[i]))));
      const facts = { variable: text(variable), start, stop, step, count };
      let place;
      if (refs.length === 1 && stmts[refs[0]][0] === CALL) {
        place = this.call(stmts[refs[0]], inner, parent, scope, times * count, facts);
        place.item.iterations = count;
      } else {
        const key = this.groupKey(`${scope}/for ${facts.variable}`);
        const group = new Group("loop", key, `for ${facts.variable} in ${range(facts)}`, parent);
        Object.assign(group, { loop: facts, iterations: count });
        const places = this.body(fn, refs, inner, group, key, times * count);
        this.settle(
          group,
          places.map((p) => ({ ...p, path: "" })),
        );
        place = { item: group, path: common(places.map((p) => p.path)) };
      }
      results.forEach(([ref], i) => env.set(text(ref), inner.get(text(yields[i]))));
      for (const [name, source] of inner) if (source && source.slots) env.set(name, source);
      return place;
    }

    groupKey(wanted) {
      let key = wanted;
      for (let n = 2; this.keys.has(`${key}/`); n += 1) key = `${wanted}#${n}`;
      this.keys.add(`${key}/`);
      return key;
    }

    /** Put items into groups by module path, below `top`; then join, fold and cut what came of it. */
    settle(top, places) {
      fillPaths(places);
      const made = new Map([["", top]]);
      const within = (path) => {
        if (!made.has(path)) {
          const cut = path.lastIndexOf(".");
          const parent = within(cut < 0 ? "" : path.slice(0, cut));
          const group = new Group("module", `${top.key}:${path}`, shortName(path), parent);
          group.path = path;
          parent.children.push(group);
          made.set(path, group);
        }
        return made.get(path);
      };
      for (const { item, path } of places) {
        const parent = within(path);
        item.parent = parent;
        parent.children.push(item);
      }
      for (const child of top.children) if (child.kind === "module") join(child);
      replaceChildren(top, top.children.map(single));
      for (let only; (only = top.children.filter((c) => c.kind === "module")).length === 1 && !groupsBeside(top);) {
        replaceChildren(
          top,
          top.children.flatMap((c) => (c === only[0] ? c.children : [c])),
        );
      }
      irloom.fold(top);
      chunk(top);
    }
  }

  /** The last word of a path; a number with the word before it. */
  const shortName = (path) => path.match(/[^.]*(?:\.\d+)*$/)[0] || path;

  const groupsBeside = (top) => top.children.some((c) => c.isGroup && c.kind !== "module");
  const range = ({ start, stop, step }) => (step === 1 ? `${start}..${stop - 1}` : `${start}..${stop - 1} by ${step}`);

  function slot(source, index) {
    return (source && source.slots && source.slots.get(index)) || source;
  }

  function typeOf({ leaf, out }) {
    return leaf.row ? leaf.row[4][out][1] : leaf.type;
  }

  /** Items without a path take what the paths before and after them share. */
  function fillPaths(places) {
    const next = new Array(places.length);
    for (let i = places.length - 1, path = ""; i >= 0; i -= 1) {
      next[i] = path;
      path = places[i].path || path;
    }
    let before = "";
    places.forEach((place, i) => {
      if (place.path) before = place.path;
      else place.path = before && next[i] ? common([before, next[i]]) : "";
    });
  }

  function common(paths) {
    const [first = "", ...rest] = paths.filter(Boolean).map((p) => p.split("."));
    const shared = [];
    for (let i = 0; i < first.length && rest.every((p) => p[i] === first[i]); i += 1) shared.push(first[i]);
    return shared.join(".");
  }

  function replaceChildren(group, children) {
    group.children = children;
    for (const child of children) child.parent = group;
  }

  /** A module with one child is that child under a longer name; a module with one op is that op. */
  function join(group) {
    for (const child of group.children) if (child.kind === "module") join(child);
    replaceChildren(group, group.children.map(single));
  }

  function single(group) {
    if (group.kind !== "module" || group.children.length !== 1) return group;
    const [only] = group.children;
    if (only.kind === "module")
      only.label = only.label.startsWith(`${group.label}.`) ? only.label : `${group.label}.${only.label}`;
    return only;
  }

  /** Hundreds of children are shown some at a time. */
  function chunk(group) {
    for (const child of group.children) if (child.isGroup && child.kind !== "call") chunk(child);
    while (group.children.length > MOST_CHILDREN) {
      const cut = [];
      for (let i = 0; i < group.children.length; i += CHUNK) {
        const part = group.children.slice(i, i + CHUNK);
        const from = part[0].kind === "chunk" ? part[0].from : i;
        const last = part[part.length - 1];
        const to = last.kind === "chunk" ? last.to : i + part.length - 1;
        const made = new Group("chunk", `${group.key}~${part[0].key}`, `${from} – ${to}`, group);
        Object.assign(made, { from, to });
        replaceChildren(made, part);
        cut.push(made);
      }
      replaceChildren(group, cut);
    }
  }

  const scenes = new Map();

  /** The scene of a state, made when it is first asked for. */
  function scene(index) {
    if (!scenes.has(index)) {
      const b = new Builder(data.states[index]);
      b.build();
      scenes.set(index, finish(b, index));
    }
    return scenes.get(index);
  }

  function finish({ root, leaves, edges }, index) {
    const byKey = new Map(),
      readers = new Map(),
      groups = [];
    const visit = (item, depth) => {
      item.depth = depth;
      byKey.set(item.key, item);
      if (!item.isGroup) return;
      groups.push(item);
      for (const child of item.children) visit(child, depth + 1);
    };
    visit(root, 0);
    for (const edge of edges) {
      if (!readers.has(edge.from)) readers.set(edge.from, []);
      readers.get(edge.from).push(edge);
    }
    return { index, root, leaves, edges, groups, byKey, readers };
  }

  Object.assign(irloom, { scene, typeOf, Group, replaceChildren, typeText: (ref) => types[ref].text });
}
