// The state of the page, and what follows from it without anything being drawn.
"use strict";
{
  const { data, scene, address, COSTS } = irloom;
  const COLORS = ["kind", ...COSTS, "error", "pass"];
  const NAMES = data.workloads.map((work) => work.name);
  const AT_FIRST = 36;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const first = {
    pass: data.steps.length,
    color: "kind",
    at: NAMES[0],
    theme: "auto",
    split: false,
    side: "after",
    q: "",
    selected: null,
    toggled: new Map(),
    unfolded: new Set(),
  };
  const known = { passes: data.steps.length, colors: COLORS, workloads: NAMES };

  const store = {
    COLORS,
    NAMES,
    dark,
    state: address.read(location.hash, first, known),

    /** The state as the address says it now. */
    reread() {
      store.state = address.read(location.hash, first, known);
    },

    /** Change the state, and the address with it; `quiet` leaves no step to go back to. */
    change(change, quiet) {
      const before = store.state;
      store.state = { ...before, ...change };
      const was = address.write(before, first);
      const now = address.write(store.state, first);
      if (was === now) return;
      const url = now || location.pathname + location.search;
      history[quiet || store.state.q !== before.q ? "replaceState" : "pushState"](null, "", url);
    },

    get isSplit() {
      return store.state.split && store.state.pass > 0;
    },

    /** The number of the pass that led to the state shown; -1 for the first state. */
    get step() {
      return store.state.pass - 1;
    },

    get theme() {
      const { theme } = store.state;
      return theme === "auto" ? (dark.matches ? "dark" : "light") : theme;
    },

    /** The side that the panels speak of. */
    get side() {
      return store.isSplit ? store.state.side : "after";
    },

    get sides() {
      return store.isSplit ? ["after", "before"] : ["after"];
    },

    sceneOf(side) {
      return scene(side === "before" ? store.state.pass - 1 : store.state.pass);
    },

    get scene() {
      return store.sceneOf(store.side);
    },

    /** The keys of groups that are open in a scene; before a pass those that are open after it, if they are there. */
    openIn(of) {
      const open = new Set(openAtFirst(of));
      const after = store.isSplit ? scene(store.state.pass) : of;
      if (of !== after) {
        const there = openAtFirst(after);
        for (const key of of.byKey.keys()) {
          if (there.has(key)) open.add(key);
          else if (after.byKey.has(key)) open.delete(key);
        }
      }
      for (const [key, wanted] of store.state.toggled) {
        if (wanted) open.add(key);
        else open.delete(key);
      }
      return open;
    },

    /** What is selected on one side: itself, or what the pass made of it. */
    selectedIn(side) {
      const { selected } = store.state;
      if (!selected || !store.isSplit || side === store.state.side) return selected;
      const other = store.counterpart(selected, side);
      return other ? other.key : null;
    },

    /** On the given side, what an item of the other side is there. */
    counterpart(key, side) {
      const from = side === "after" ? "before" : "after";
      const item = store.sceneOf(from).byKey.get(key);
      const to = store.sceneOf(side);
      if (!item || item.isGroup || to.byKey.has(key)) return to.byKey.get(key);
      return store.findPlace(to, irloom.twin(item, store.step, from) || "");
    },

    /** The leaf at `function.value`; of a function that is called several times in its first call. */
    findPlace(of, where) {
      const cut = where.indexOf(".");
      const [fn, name] = [where.slice(0, cut), where.slice(cut + 1)];
      const makes = (leaf) => leaf.row[4].some((result) => irloom.text(result[0]) === name);
      return of.leaves.find((leaf) => leaf.row && leaf.fn === fn && makes(leaf));
    },
  };

  /** Groups that are open at first: from the outside in, as long as all that is shown can be taken in. */
  function openAtFirst(of) {
    if (of.openAtFirst) return of.openAtFirst;
    const open = new Set();
    let shown = of.root.children.length;
    for (let level = of.root.children; level.length;) {
      const next = [];
      for (const item of level) {
        if (!item.isGroup || item.kind === "chunk") continue;
        const inside = item.kind === "fold" ? irloom.firstMember(item) : item.children;
        if (shown + inside.length > AT_FIRST) continue;
        open.add(item.key);
        shown += inside.length;
        next.push(...inside);
      }
      level = next;
    }
    of.openAtFirst = open;
    return open;
  }

  irloom.store = store;
}
