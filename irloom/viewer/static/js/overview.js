// The panels on a group, and on the program as a whole: its figures, its passes, what the one at hand did.
"use strict";
{
  const { data, h, ops, amount } = irloom;
  const { section, cell, head, button, link, table, heading, list } = irloom.elements;
  const KINDS = {
    func: "program",
    call: "call",
    loop: "loop",
    module: "module",
    fold: "alike, shown once",
    chunk: "part of a long list",
  };

  function groupPanel(context, group) {
    const { shown, on } = context;
    const buttons = [button(shown.isOpen(group) ? "Close" : "Open", () => on.toggle(group.key))];
    if (group.kind === "fold") {
      const folded = shown.isFolded(group);
      const words = folded ? `Show all ${group.members.length}` : "Fold";
      buttons.push(button(words, () => on.unfold(group.key, folded)));
    }
    return [
      heading(group.label, KINDS[group.kind], buttons),
      h("p", {}, facts(group)),
      section("Inside", table(opCounts(group).map(([name, n]) => [head(name), cell(n.toLocaleString("en"))]))),
      irloom.costSection(context, group),
      irloom.nearSection(context, group),
    ];
  }

  function facts(group) {
    const words = [];
    if (group.fn) words.push(`function ${group.fn}${group.index ? `, layer ${group.index}` : ""}`);
    if (group.path) words.push(`module ${group.path}`);
    if (group.loop) {
      const { count, variable, start, stop } = group.loop;
      words.push(`runs ${count} times, ${variable} from ${start} to ${stop - 1}`);
    }
    if (group.kind === "fold") {
      words.push(`${group.members.length} parts with the same ops, attributes, types and wiring; their weights differ`);
    }
    return words.join(" · ") || "no module path";
  }

  function opCounts(group) {
    const counts = new Map();
    for (const leaf of group.leaves) {
      if (!leaf.row) continue;
      const { name } = ops[leaf.row[1]];
      counts.set(name, (counts.get(name) || 0) + leaf.times);
    }
    return [...counts].sort((a, b) => b[1] - a[1]);
  }

  function programPanel({ pass, step, on }) {
    const { header } = data.states[pass];
    const folded = h("details", {}, h("summary", {}, "Header"), h("pre", { class: "ir" }, header.join("\n")));
    return [
      heading(data.model, `irloom ${data.irloom}`),
      section("Figures", table(data.figures.map(([name, value]) => [head(name), cell(value)]))),
      data.steps.length ? section("Passes", passTable(pass, on)) : null,
      step >= 0 ? stepSection(data.steps[step], on) : null,
      header.length ? folded : null,
    ];
  }

  function passTable(pass, on) {
    const verified = data.steps.some((step) => step.numerics);
    const row = (at, name, ...facts) => {
      const words = [String(data.states[at].nodes), ...facts.slice(0, verified ? 4 : 3)];
      const to = link(name, () => on.pass(at));
      if (at === pass) to.setAttribute("aria-current", "step");
      return [h("th", { scope: "row", class: at === pass ? "here" : "" }, to), words.map((word) => cell(word))];
    };
    const rows = data.steps.map((step, i) => {
      const near = step.near.length ? String(step.near.length) : "";
      const error = step.numerics ? showError(step.numerics) : "";
      return row(i + 1, step.text, String(step.changes.length), near, (step.seconds * 1e3).toFixed(0), error);
    });
    const columns = ["pass", "nodes", "changes", "near", "ms", ...(verified ? ["error"] : [])];
    return table([row(0, "trace", "", "", "", ""), ...rows], { kind: "passes", columns });
  }

  const showError = ({ relative, error, allowed }) =>
    `${typeof relative === "number" ? amount(relative, "error") : relative}${error > allowed || typeof error === "string" ? " !" : ""}`;

  function stepSection(step, on) {
    const place = (where) => link(where, () => on.place(where));
    const change = (words) => {
      const cut = words.indexOf(": ");
      return cut < 0 ? words : [place(words.slice(0, cut)), words.slice(cut)];
    };
    const numbers = Object.entries(step.numerics || {}).filter(([, value]) => typeof value !== "object");
    const shown = (value) => (typeof value === "number" ? value.toPrecision(3) : String(value));
    return section(
      `What ${step.name} did`,
      numbers.length ? table(numbers.map(([key, value]) => [head(key), cell(shown(value))])) : null,
      step.changes.length ? list(step.changes, 60, change) : h("p", {}, "nothing"),
      step.near.length ? h("h4", {}, "Almost") : null,
      step.near.length ? list(step.near, 40, ([where, why]) => [place(where), `: ${why}`]) : null,
    );
  }

  Object.assign(irloom, { groupPanel, programPanel });
}
