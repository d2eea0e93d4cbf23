// The page begins here; `irloom.state()` says what it shows, for tests and for the console.
"use strict";
{
  const { data, h, store, update, draw, actions } = irloom;
  const $ = (id) => document.getElementById(id);

  /** The state of the page. */
  function told() {
    const { state, side, step, scene } = store;
    const { panes } = irloom;
    const boxes = panes[side].shown ? [...panes[side].shown.boxes.values()] : [];
    const describe = ({ item, open }) => {
      const times = item.isGroup ? irloom.times(item) : item.times;
      return { key: item.key, kind: item.kind, label: irloom.title(item, open), open, times };
    };
    const bySide = (of) => Object.fromEntries(store.sides.map((s) => [s, panes[s].shown ? of(panes[s]) : null]));
    return {
      ...irloom.drawing(),
      pass: state.pass,
      passes: data.steps.length,
      split: store.isSplit,
      side,
      color: state.color,
      at: state.at,
      theme: store.theme,
      selected: state.selected,
      query: state.q,
      address: location.hash,
      nodes: data.states[state.pass].nodes,
      leaves: scene.leaves.length,
      boxes: boxes.filter((box) => box.parent).map(describe),
      edges: panes[side].cy.edges().length,
      marks: bySide((pane) => irloom.marks(pane.shown, pane.scene.root, step, pane.side)),
      drawn: bySide((pane) => pane.cy.nodes(".box").length),
      results: [...$("results").children].map((row) => row.dataset.key),
    };
  }

  /** The state once nothing is being drawn any more. */
  async function settled() {
    await irloom.idle();
    return told();
  }

  /** How a box is painted on one side: fill, badge, mark. */
  function painted([key, side]) {
    const pane = irloom.panes[side];
    const item = pane.scene.byKey.get(key);
    return { ...irloom.look(item, { ...pane.how, shown: pane.shown }), mark: irloom.mark(item, store.step, side) };
  }

  /** Where the middle of a box's title is in the window, in pixels. */
  const where = (key) => irloom.panes[store.side].where(key);

  Object.assign(irloom, { state: told, settled, where, painted });

  function begin() {
    irloom.make(irloom.clicks);
    $("model").textContent = data.model;
    const figures = data.figures.slice(0, 6).map(([name, value]) => h("span", {}, h("b", {}, value), ` ${name}`));
    $("head-figures").replaceChildren(...figures);
    $("at").replaceChildren(...store.NAMES.map((name) => h("option", { value: name }, name)));
    $("color").addEventListener("change", (event) => update({ color: event.target.value }));
    $("at").addEventListener("change", (event) => update({ at: event.target.value }));
    $("search").addEventListener("input", (event) => update({ q: event.target.value }));
    for (const button of document.querySelectorAll("button[data-do]")) {
      button.addEventListener("click", () => actions[button.dataset.do]());
    }
    $("skip").addEventListener("click", (event) => {
      event.preventDefault();
      $("outline").querySelector("[tabindex='0']").focus();
    });
    store.dark.addEventListener("change", () => draw(store.state));
    addEventListener("popstate", () => {
      const before = store.state;
      store.reread();
      draw(before, { reveal: store.state.selected === before.selected ? null : store.state.selected });
    });
    addEventListener("resize", () => Object.values(irloom.panes).forEach((pane) => pane.cy.resize()));
    draw(null, { reveal: store.state.selected }).then(() => performance.mark("irloom-ready"));
  }

  begin();
}
