// The page: its state, what changes it, and what is drawn of it.
"use strict";
{
  const { data, h, scene, Pane, Outline, Timeline, address, COSTS } = irloom;
  const COLORS = ["kind", ...COSTS, "error", "pass"];
  const NAMES = data.workloads.map((w) => w.name);
  const AT_FIRST = 36;
  const $ = (id) => document.getElementById(id);
  const first = {
    pass: data.steps.length, color: "kind", at: NAMES[0], theme: "auto", split: false, side: "after", q: "", selected: null,
    toggled: new Map(), unfolded: new Set(),
  };
  const known = { passes: data.steps.length, colors: COLORS, workloads: NAMES };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let state = address.read(location.hash, first, known);
  let busy = 1, drawn = Promise.resolve(), problem = null;

  const on = {
    select: (key, side) => update({ selected: key, side: side || state.side }),
    toggle: (key) => {
      const open = openIn(current().scene).has(key);
      update({ toggled: new Map(state.toggled).set(key, !open), selected: key }, { anchor: key });
    },
    unfold: (key, all) => {
      const unfolded = new Set(state.unfolded);
      if (all) unfolded.add(key); else unfolded.delete(key);
      update({ unfolded, toggled: new Map(state.toggled).set(key, true) }, { anchor: key });
    },
    pass: (pass) => update({ pass: Math.max(0, Math.min(pass, data.steps.length)) }),
    jump: (key, exact = false) => jump(key, exact),
    place: (where) => {
      const cut = where.indexOf("."), fn = where.slice(0, cut), name = where.slice(cut + 1);
      for (const side of state.split ? ["after", "before"] : ["after"]) {
        const leaf = sceneOf(side).leaves.find((l) => l.row && l.fn === fn && l.name === name);
        if (leaf) return jump(leaf.key, false, side);
      }
      return say(`${where} is not in the program here`);
    },
    parent: (key) => {
      const box = current().pane.shown.boxes.get(key);
      if (box && box.parent && box.parent.parent) update({ selected: box.parent.item.key });
    },
  };

  const panes = {
    after: new Pane($("after"), "after", sided("after")),
    before: new Pane($("before"), "before", sided("before")),
  };
  const outline = new Outline($("outline"), on);
  const timeline = new Timeline($("slider"), $("ticks"), $("step"), on);

  function sided(side) {
    return { select: (key) => on.select(key, side), toggle: on.toggle };
  }

  const isSplit = () => state.split && state.pass > 0;
  const step = () => state.pass - 1;
  const sceneOf = (side) => scene(side === "before" ? state.pass - 1 : state.pass);
  const theme = () => (state.theme === "auto" ? (dark.matches ? "dark" : "light") : state.theme);

  /** The pane that the panels speak of. */
  function current() {
    const side = isSplit() ? state.side : "after";
    return { side, pane: panes[side], scene: sceneOf(side) };
  }

  /** Groups that are open at first: from the outside in, as long as all that is shown can be taken in. */
  function openAtFirst(of) {
    if (of.openAtFirst) return of.openAtFirst;
    const open = new Set();
    let shown = of.root.children.length, level = of.root.children;
    while (level.length) {
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

  function openIn(of) {
    const open = new Set(openAtFirst(of));
    for (const [key, wanted] of state.toggled) if (wanted) open.add(key); else open.delete(key);
    return open;
  }

  /** Change the state, its address, and what is drawn of it. */
  function update(change, { anchor = null, quiet = false, reveal = null } = {}) {
    const before = state;
    state = { ...state, ...change };
    if (!quiet) remember(before);
    return render(before, anchor, reveal);
  }

  function remember(before) {
    const was = address.write(before, first), now = address.write(state, first);
    if (was === now) return;
    const url = now || location.pathname + location.search;
    history[state.q !== before.q ? "replaceState" : "pushState"](null, "", url);
  }

  const drawnBy = (s) => [s.pass, s.split, [...s.toggled], [...s.unfolded]];
  const differ = (a, b) => JSON.stringify(a) !== JSON.stringify(b);

  /** Draw what the change from `before` asks for. */
  function render(before, anchor, reveal) {
    const whole = !before || differ(drawnBy(before), drawnBy(state));
    busy += 1;
    drawn = drawn.then(async () => {
      document.documentElement.dataset.theme = theme();
      document.body.classList.toggle("split", isSplit());
      const how = { step: step(), mode: state.color, workload: NAMES.indexOf(state.at), theme: theme(), selected: state.selected };
      for (const side of isSplit() ? ["after", "before"] : ["after"]) {
        const pane = panes[side];
        if (whole || !pane.shown) {
          if (before && before.split !== state.split) pane.shown = null;
          const of = sceneOf(side);
          await pane.show(of, { ...how, open: openIn(of), unfolded: state.unfolded, anchor });
        } else if (!before || before.color !== state.color || before.at !== state.at || before.theme !== state.theme) pane.recolour(how);
        else pane.highlight(state.selected);
        if (reveal) pane.reveal(reveal);
        else if (state.selected && !whole && !pane.isInView(state.selected)) pane.reveal(state.selected);
      }
      panels();
    }).catch((error) => {
      problem = String(error.stack || error);
      say(`this view could not be drawn: ${error.message}`);
    }).finally(() => {
      busy -= 1;
    });
    return drawn;
  }

  function panels() {
    const { pane, scene: of } = current();
    const item = state.selected && of.byKey.get(state.selected);
    const context = { scene: of, shown: pane.shown, pass: state.pass, step: step(), on };
    const content = !item ? irloom.programPanel(context) : item.isGroup ? irloom.groupPanel(item, context, on) : irloom.leafPanel(item, context, on);
    $("details").replaceChildren(...content.filter(Boolean));
    outline.show(pane);
    timeline.show(state.pass);
    legend(pane);
    results(of, pane);
    for (const id of ["color", "at"]) $(id).value = state[id];
    $("split").setAttribute("aria-pressed", String(isSplit()));
    $("split").disabled = state.pass === 0;
    $("theme").textContent = { auto: "Auto", light: "Light", dark: "Dark" }[state.theme];
    $("before-name").textContent = step() >= 0 ? `before ${data.steps[step()].name}` : "";
    $("after-name").textContent = step() >= 0 ? `after ${data.steps[step()].name}` : "as traced";
  }

  function legend(pane) {
    const { note, rows, ramp } = irloom.legend({ ...pane.how, shown: pane.shown });
    const marks = step() < 0 ? [] : Object.entries(irloom.marks(pane.shown, pane.scene.root, step(), pane.side));
    $("legend").replaceChildren(
      ...(note ? [h("p", {}, note)] : []),
      h("ul", { class: ramp ? "ramp" : "" }, rows.map(([seen, words]) => h("li", {}, h("span", { class: "swatch", style: `background:${seen.fill};border-color:${seen.border}` }), words))),
      ...(marks.length ? [h("ul", {}, marks.map(([kind, n]) => h("li", { class: kind }, h("span", { class: "swatch mark" }), `${irloom.SIGNS[kind]} ${n} ${kind}`)))] : []),
    );
  }

  function results(of, pane) {
    const open = state.q.trim() !== "";
    $("results").hidden = !open;
    $("outline").hidden = open;
    if ($("search").value !== state.q) $("search").value = state.q;
    if (!open) {
      $("found").textContent = "";
      return;
    }
    const found = irloom.search(of, state.q, (leaf) => pane.shown.representative(leaf));
    const all = found.reduce((n, r) => n + r.count, 0);
    $("found").textContent = all ? `${all.toLocaleString("en")} nodes, ${found.length.toLocaleString("en")} places` : "nothing found";
    $("results").replaceChildren(...found.slice(0, 300).map(({ leaf, count }) => h("button", {
      type: "button", class: "result", "data-key": leaf.key, "aria-current": leaf.key === state.selected ? "true" : null, onclick: () => on.jump(leaf.key, true),
    }, h("b", {}, leaf.label), ` ${leaf.name}`, count > 1 ? h("span", { class: "times" }, `×${count}`) : null,
    h("span", { class: "path" }, irloom.text(leaf.row[5]) || leaf.fn))));
  }

  /** Open what is around an item, select it, bring it into view. `exact`: itself, not one that is alike. */
  function jump(key, exact, side = current().side) {
    const of = sceneOf(side), { shown } = panes[side];
    let item = of.byKey.get(key);
    if (!item) return undefined;
    const unfolded = new Set(state.unfolded);
    if (!item.isGroup) {
      const alike = shown.representative(item);
      if (!exact) item = alike;
      else if (alike !== item) for (const [fold, { member }] of item.folds) if (member) unfolded.add(fold.key);
    }
    const next = new irloom.Shown(of, new Set(), unfolded), open = openIn(of);
    const toggled = new Map(state.toggled);
    for (const group of next.around(item)) if (group.parent && !open.has(group.key)) toggled.set(group.key, true);
    return update({ toggled, unfolded, selected: item.key, side }, { reveal: item.key });
  }

  /** The next place that the pass changed, after what is selected; -1 for the one before. */
  function nextChange(by) {
    const { scene: of, pane, side } = current();
    const changed = [...new Set(of.leaves.filter((l) => irloom.mark(l, step(), side)).map((l) => pane.shown.representative(l)))];
    if (!changed.length) return say(side === "after" ? "the pass left nothing new here; `s` shows what was before" : "nothing changed here");
    const at = changed.findIndex((l) => l.key === state.selected);
    return jump(changed[at < 0 ? (by > 0 ? 0 : changed.length - 1) : (at + by + changed.length) % changed.length].key, false);
  }

  /** Open or close everything below what is selected, or below the program. */
  function toggleBelow() {
    const { scene: of, pane } = current(), item = of.byKey.get(state.selected) || of.root;
    const groups = of.groups.filter((g) => g === item || pane.shown.around(g).includes(item)).filter((g) => g.parent);
    const open = openIn(of), toggled = new Map(state.toggled), wanted = groups.some((g) => !open.has(g.key));
    let room = 1500 - pane.shown.boxes.size;
    for (const group of groups) {
      room -= wanted ? group.children.length : 0;
      if (room < 0) return say("more than 1,500 boxes: open fewer groups");
      toggled.set(group.key, wanted);
    }
    return update({ toggled }, { anchor: item.key });
  }

  /** To a neighbour of what is selected: `up` what it reads, `down` what reads it, or beside it. */
  function walk(way) {
    const { pane } = current(), { shown } = pane, box = shown.boxes.get(state.selected);
    if (!box || !box.parent) return update({ selected: shown.root.children[0].item.key });
    const beside = box.parent.children, at = beside.indexOf(box);
    const edges = [...box.parent.edges.values()];
    const near = {
      left: beside[at - 1], right: beside[at + 1],
      up: edges.filter((e) => e.to === box && e.from !== box.parent).map((e) => e.from)[0] || (box.parent.parent && box.parent),
      down: edges.filter((e) => e.from === box && e.to !== box.parent).map((e) => e.to)[0],
      in: box.children[0],
    }[way];
    return near ? update({ selected: near.item.key }) : undefined;
  }

  let silence = 0;
  function say(words) {
    $("said").textContent = words;
    clearTimeout(silence);
    silence = setTimeout(() => { $("said").textContent = ""; }, 5000);
  }

  const cycle = (among, value, by = 1) => among[(among.indexOf(value) + by + among.length) % among.length];
  const actions = {
    nextChange, toggleBelow, walk, say,
    pass: (by) => on.pass(state.pass + by),
    split: () => (state.pass > 0 ? update({ split: !state.split }) : say("there is nothing before the first state")),
    color: (by) => update({ color: cycle(COLORS, state.color, by) }),
    theme: () => update({ theme: cycle(["auto", "light", "dark"], state.theme) }),
    toggle: () => {
      const item = current().scene.byKey.get(state.selected);
      if (item && item.isGroup) on.toggle(item.key);
    },
    clear: () => update(state.q ? { q: "" } : { selected: null }),
    fit: () => Object.values(panes).forEach((pane) => pane.shown && pane.whole()),
    zoom: (by) => Object.values(panes).forEach((pane) => pane.cy.zoom({ level: pane.cy.zoom() * by, renderedPosition: { x: pane.cy.width() / 2, y: pane.cy.height() / 2 } })),
    save: () => irloom.save(irloom.toSvg(current().pane), `${data.model.replace(/[^\w.-]+/g, "_")}.svg`),
    search: () => $("search").select(),
    help: () => $("help").showModal(),
  };

  /** The state of the page, for tests and for the console. */
  function told() {
    const { pane, scene: of, side } = current(), boxes = pane.shown ? [...pane.shown.boxes.values()] : [];
    const describe = (b) => ({ key: b.item.key, kind: b.item.kind, label: irloom.title(b.item, b.open), open: b.open, times: b.item.isGroup ? irloom.times(b.item) : b.item.times });
    return {
      ready: busy === 0, problem, pass: state.pass, passes: data.steps.length, split: isSplit(), side, color: state.color, at: state.at,
      theme: theme(), selected: state.selected, query: state.q, nodes: data.states[state.pass].nodes, leaves: of.leaves.length,
      boxes: boxes.filter((b) => b.parent).map(describe), edges: pane.cy.edges().length,
      marks: Object.fromEntries(Object.entries(panes).filter(([s]) => s === "after" || isSplit()).map(([s, p]) => [s, p.shown ? irloom.marks(p.shown, p.scene.root, step(), s) : {}])),
      results: [...$("results").children].map((r) => r.dataset.key), address: location.hash,
      drawn: Object.fromEntries(Object.entries(panes).map(([s, p]) => [s, p.shown ? p.cy.nodes(".box").length : 0])),
    };
  }

  /** The state once nothing is being drawn any more. */
  async function settled() {
    while (busy) await Promise.all([drawn, new Promise((done) => setTimeout(done, 5))]);
    return told();
  }

  Object.assign(irloom, { actions, state: told, settled });

  function begin() {
    $("model").textContent = data.model;
    document.title = `${data.model} · irloom`;
    $("head-figures").replaceChildren(...data.figures.slice(0, 6).map(([name, value]) => h("span", {}, h("b", {}, value), ` ${name}`)));
    $("at").replaceChildren(...NAMES.map((name) => h("option", { value: name }, name)));
    $("color").addEventListener("change", (e) => update({ color: e.target.value }));
    $("at").addEventListener("change", (e) => update({ at: e.target.value }));
    $("search").addEventListener("input", (e) => update({ q: e.target.value }));
    for (const name of ["split", "theme", "save", "fit", "help"]) {
      document.querySelector(`button[data-do=${name}]`).addEventListener("click", () => actions[name]());
    }
    dark.addEventListener("change", () => update({}, { quiet: true }).then(() => Object.values(panes).forEach((p) => p.shown && p.recolour({ theme: theme() }))));
    addEventListener("popstate", () => {
      const before = state;
      state = address.read(location.hash, first, known);
      render(before, null, state.selected !== before.selected ? state.selected : null);
    });
    addEventListener("resize", () => Object.values(panes).forEach((p) => p.cy.resize()));
    render(null, null, state.selected).then(() => {
      busy -= 1;
      performance.mark("irloom-ready");
    });
  }

  begin();
}
