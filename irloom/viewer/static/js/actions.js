// What the reader can do: by clicks (`on`) and by keys and buttons (`actions`).
"use strict";
{
  const { data, store, update, say } = irloom;
  const MOST_BOXES = 1500;
  const pane = () => irloom.panes[store.side];
  const toggled = (key, open) => new Map(store.state.toggled).set(key, open);

  const on = {
    select: (key, side) => update({ selected: key, side: side || store.state.side }),
    toggle: (key) => {
      const open = store.openIn(store.scene).has(key);
      return update({ toggled: toggled(key, !open), selected: key }, { anchor: key });
    },
    unfold: (key, all) => {
      const unfolded = new Set(store.state.unfolded);
      if (all) unfolded.add(key);
      else unfolded.delete(key);
      return update({ unfolded, toggled: toggled(key, true) }, { anchor: key });
    },
    pass: (pass) => update({ pass: Math.max(0, Math.min(pass, data.steps.length)) }),
    jump,
    place: (where) => {
      for (const side of store.sides) {
        const leaf = store.findPlace(store.sceneOf(side), where);
        if (leaf) return jump(leaf.key, false, side);
      }
      return say(`${where} is not in the program here`);
    },
    parent: (key) => {
      const box = pane().shown.boxes.get(key);
      if (box && box.parent && box.parent.parent) update({ selected: box.parent.item.key });
    },
  };

  /** Open what is around an item, select it, bring it into view. `exact`: itself, not one that is alike. */
  function jump(key, exact = false, side = store.side) {
    let item = store.sceneOf(side).byKey.get(key);
    if (!item) return undefined;
    const unfolded = new Set(store.state.unfolded);
    const opened = new Map(store.state.toggled);
    if (!item.isGroup) {
      const alike = irloom.panes[side].shown.representative(item);
      if (!exact) item = alike;
      else if (alike !== item) for (const [fold, { member }] of item.folds) if (member) unfolded.add(fold.key);
    }
    openAround(item, side, unfolded, opened);
    const other = side === "after" ? "before" : "after";
    const twin = store.isSplit && store.counterpart(item.key, other);
    if (twin) openAround(twin, other, unfolded, opened);
    return update({ toggled: opened, unfolded, selected: item.key, side }, { reveal: item.key });
  }

  function openAround(item, side, unfolded, opened) {
    const scene = store.sceneOf(side);
    const open = store.openIn(scene);
    for (const group of new irloom.Shown(scene, new Set(), unfolded).around(item)) {
      if (group.parent && !open.has(group.key)) opened.set(group.key, true);
    }
  }

  /** The next place that the pass changed, after what is selected; -1 for the one before. */
  function nextChange(by) {
    const { scene, side, step } = store;
    const { shown } = pane();
    const changed = scene.leaves
      .filter((leaf) => irloom.mark(leaf, step, side))
      .map((leaf) => shown.representative(leaf));
    const places = [...new Set(changed)];
    if (!places.length)
      return say(side === "after" ? "nothing new here; `s` shows what was before" : "nothing changed here");
    const at = places.findIndex((leaf) => leaf.key === store.state.selected);
    const next = at < 0 ? (by > 0 ? 0 : places.length - 1) : (at + by + places.length) % places.length;
    return jump(places[next].key);
  }

  /** Open or close everything below what is selected, or below the program. */
  function toggleBelow() {
    const { scene } = store;
    const { shown } = pane();
    const item = scene.byKey.get(store.state.selected) || scene.root;
    const groups = scene.groups.filter((g) => g.parent && (g === item || shown.around(g).includes(item)));
    const open = store.openIn(scene);
    const opened = new Map(store.state.toggled);
    const wanted = groups.some((group) => !open.has(group.key));
    let room = MOST_BOXES - shown.boxes.size;
    for (const group of groups) {
      room -= wanted ? group.children.length : 0;
      if (room < 0) return say(`more than ${MOST_BOXES} boxes: open fewer groups`);
      opened.set(group.key, wanted);
    }
    return update({ toggled: opened }, { anchor: item.key });
  }

  /** To a neighbour of what is selected: `up` what it reads, `down` what reads it, or beside it. */
  function walk(way) {
    const { shown } = pane();
    const box = shown.boxes.get(store.state.selected);
    if (!box || !box.parent) return update({ selected: shown.root.children[0].item.key });
    const beside = box.parent.children;
    const at = beside.indexOf(box);
    const edges = [...box.parent.edges.values()];
    const read = edges.find((edge) => edge.to === box && edge.from !== box.parent);
    const reader = edges.find((edge) => edge.from === box && edge.to !== box.parent);
    const near = {
      left: beside[at - 1],
      right: beside[at + 1],
      up: read ? read.from : box.parent.parent && box.parent,
      down: reader && reader.to,
      in: box.children[0],
    }[way];
    return near ? update({ selected: near.item.key }) : undefined;
  }

  const cycle = (among, value, by = 1) => among[(among.indexOf(value) + by + among.length) % among.length];
  const shownPanes = () => Object.values(irloom.panes).filter((each) => each.shown);

  const actions = {
    nextChange,
    toggleBelow,
    walk,
    pass: (by) => on.pass(store.state.pass + by),
    split: () =>
      store.state.pass > 0 ? update({ split: !store.state.split }) : say("there is nothing before the first state"),
    color: (by) => update({ color: cycle(store.COLORS, store.state.color, by) }),
    theme: () => update({ theme: cycle(["auto", "light", "dark"], store.state.theme) }),
    toggle: () => {
      const item = store.scene.byKey.get(store.state.selected);
      return item && item.isGroup ? on.toggle(item.key) : undefined;
    },
    clear: () => update(store.state.q ? { q: "" } : { selected: null }),
    fit: () => shownPanes().forEach((each) => each.whole()),
    zoom: (by) => shownPanes().forEach((each) => each.zoom(by)),
    save: () => irloom.save(pane(), data.model),
    search: () => document.getElementById("search").select(),
    help: () => document.getElementById("help").showModal(),
  };

  Object.assign(irloom, { clicks: on, actions });
}
