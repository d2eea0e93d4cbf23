// The parts that panels are built of.
"use strict";
{
  const { h, types, typeText } = irloom;

  const section = (name, ...children) => h("section", {}, h("h3", {}, name), ...children);
  const cell = (...children) => h("td", {}, ...children);
  const head = (words) => h("th", { scope: "row" }, words);
  const code = (words) => h("code", {}, words);
  const note = (words) => h("p", { class: "note" }, words);
  const button = (words, onclick) => h("button", { type: "button", onclick }, words);
  const link = (words, onclick) => h("button", { type: "button", class: "link", onclick }, words);
  const rows = (all) => all.map((cells) => h("tr", {}, cells));

  /** A table of rows of cells; with `columns` it has a head. */
  function table(all, { kind = "", columns = [] } = {}) {
    const names = columns.map((words) => h("th", { scope: "col" }, words));
    return h(
      "table",
      { class: kind },
      names.length ? h("thead", {}, h("tr", {}, names)) : null,
      h("tbody", {}, rows(all)),
    );
  }

  function heading(name, words, buttons = []) {
    const title = h("h2", {}, name, h("span", { class: "sub" }, words));
    return h("header", {}, title, h("div", { class: "buttons" }, buttons));
  }

  /** A type, and what it says of caches, quantization and sharding. */
  const typeFacts = (ref) => h("div", {}, code(typeText(ref)), types[ref].notes.map(note));

  /** A list that is cut where it gets long, and says so. */
  function list(all, most, show) {
    const items = all.slice(0, most).map((one) => h("li", {}, show(one)));
    return [h("ul", { class: "places" }, items), all.length > most && note(`and ${all.length - most} more`)];
  }

  irloom.elements = { section, cell, head, code, note, button, link, table, heading, typeFacts, list };
}
