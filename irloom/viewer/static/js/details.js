// The panel on what is selected; without a selection, on the program and the pass.
"use strict";
{
  const { data, h, ops, attrs, types, text, typeText, typeOf, amount, percent, price } = irloom;

  const section = (name, ...children) => h("section", {}, h("h3", {}, name), ...children);
  const table = (rows, kind = "") => h("table", { class: kind }, h("tbody", {}, rows.map((cells) => h("tr", {}, cells))));
  const cell = (...children) => h("td", {}, ...children);
  const head = (words) => h("th", { scope: "row" }, words);
  const code = (words) => h("code", {}, words);

  /** Everything on one op application. `on.jump(key)` goes to another. */
  function leafPanel(leaf, context, on) {
    if (!leaf.row) return boundaryPanel(leaf, context, on);
    const [, op, , set, , path, line] = leaf.row, facts = ops[op];
    return [
      heading(facts.name, leaf.name, [copyButton(irloom.irText(leaf.row))]),
      h("pre", { class: "ir", tabindex: "0", "aria-label": "the node as IR text" }, irloom.irText(leaf.row)),
      section("Results", results(leaf, context, on)),
      section("Operands", operands(leaf, facts, on)),
      attrs[set].length ? section("Attributes", attributes(attrs[set])) : null,
      weights(leaf),
      section("Where from", origin(leaf, text(path), text(line), context)),
      costSection(leaf, context),
      nearSection(leaf, context),
      h("details", {}, h("summary", {}, `What ${facts.name} does`), code(facts.signature), h("p", { class: "doc" }, facts.doc)),
    ];
  }

  function boundaryPanel(leaf, { scene }, on) {
    const rows = (scene.readers.get(leaf) || []).map((e) => jump(e.to, on));
    return [
      heading(leaf.kind, leaf.label, []),
      section("Type", typeFacts(leaf.type)),
      rows.length ? section("Read by", h("p", { class: "links" }, rows)) : null,
    ];
  }

  function groupPanel(group, context, on) {
    const { shown } = context, open = shown.isOpen(group);
    const buttons = [h("button", { type: "button", onclick: () => on.toggle(group.key) }, open ? "Close" : "Open")];
    if (group.kind === "fold") {
      const folded = shown.isFolded(group);
      buttons.push(h("button", { type: "button", onclick: () => on.unfold(group.key, folded) }, folded ? `Show all ${group.members.length}` : "Fold"));
    }
    return [
      heading(group.label, KINDS[group.kind], buttons),
      h("p", {}, groupWords(group)),
      section("Inside", table(opCounts(group).map(([name, n]) => [head(name), cell(String(n))]))),
      costSection(group, context),
      nearSection(group, context),
    ];
  }

  const KINDS = { func: "program", call: "call", loop: "loop", module: "module", fold: "alike, shown once", chunk: "part of a long list" };

  function groupWords(group) {
    const words = [];
    if (group.fn) words.push(`function ${group.fn}${group.index ? `, layer ${group.index}` : ""}`);
    if (group.path) words.push(`module ${group.path}`);
    if (group.loop) words.push(`runs ${group.loop.count} times, ${group.loop.variable} from ${group.loop.start} to ${group.loop.stop - 1}`);
    if (group.kind === "fold") words.push(`${group.members.length} parts with the same ops, attributes, types and wiring; their weights differ`);
    return words.join(" · ") || "no module path";
  }

  function opCounts(group) {
    const counts = new Map();
    for (const leaf of group.leaves) if (leaf.row) counts.set(ops[leaf.row[1]].name, (counts.get(ops[leaf.row[1]].name) || 0) + leaf.times);
    return [...counts].sort((a, b) => b[1] - a[1]);
  }

  function heading(name, words, buttons) {
    return h("header", {}, h("h2", {}, name, h("span", { class: "sub" }, words)), h("div", { class: "buttons" }, buttons));
  }

  function copyButton(words) {
    return h("button", { type: "button", onclick: async (event) => {
      await navigator.clipboard.writeText(words);
      event.target.textContent = "Copied";
    } }, "Copy");
  }

  const jump = (leaf, on) => h("button", { type: "button", class: "link", onclick: () => on.jump(leaf.key) }, leaf.name || leaf.label);

  function typeFacts(ref) {
    return h("div", {}, code(typeText(ref)), types[ref].notes.map((note) => h("p", { class: "note" }, note)));
  }

  function results(leaf, { scene }, on) {
    const readers = scene.readers.get(leaf) || [];
    return table(leaf.row[4].map(([name, type, buffer], out) => {
      const users = [...new Set(readers.filter((e) => e.out === out).map((e) => e.to))];
      return [head(text(name)), cell(
        typeFacts(type),
        buffer ? h("p", { class: "note" }, `lives in buffer ${text(buffer)}`) : null,
        users.length ? h("p", { class: "links" }, "read by ", users.slice(0, 12).map((u) => jump(u, on)), users.length > 12 ? ` and ${users.length - 12} more` : "") : null,
      )];
    }));
  }

  function operands(leaf, facts, on) {
    return table(leaf.args.map((arg, i) => {
      const name = facts.operands[Math.min(i, facts.operands.length - 1)] || `operand ${i}`;
      if (arg.literal !== undefined) return [head(name), cell(code(arg.literal))];
      if (arg.weight) return [head(name), cell("weight ", code(arg.name), typeFacts(arg.weight[1]))];
      return [head(name), cell(arg.leaf ? jump(arg.leaf, on) : arg.name, arg.leaf ? typeFacts(typeOf(arg)) : null)];
    }));
  }

  function attributes(rows) {
    return table(rows.map(([key, value, isDefault]) => [
      h("th", { scope: "row", class: isDefault ? "default" : "" }, key),
      h("td", { class: isDefault ? "default" : "" }, code(value), isDefault ? " (default)" : ""),
    ]));
  }

  function weights(leaf) {
    const used = leaf.args.filter((arg) => arg.weight);
    if (!used.length) return null;
    return section("Weights", used.map((arg) => h("div", { class: "weight" }, h("b", {}, arg.name), typeFacts(arg.weight[1]), code(text(arg.weight[3])))));
  }

  function origin(leaf, path, line, { on, step }) {
    const rows = [];
    if (path) rows.push([head("module"), cell(code(path))]);
    if (line) rows.push([head("source"), cell(code(line))]);
    rows.push([head("function"), cell(code(leaf.fn))], [head("made by"), cell(irloom.madeBy(leaf))]);
    const steps = data.steps.map((s, i) => [s, irloom.mark(leaf, i, "after"), i]).filter(([, mark]) => mark);
    if (steps.length) {
      rows.push([head("touched by"), cell(h("p", { class: "links" }, steps.map(([s, mark, i]) =>
        h("button", { type: "button", class: i === step ? "link here" : "link", onclick: () => on.pass(i + 1) }, `${irloom.SIGNS[mark]} ${s.name}`))))]);
    }
    return table(rows);
  }

  function costSection(item, { shown, step }) {
    const rows = data.workloads.map((work, i) => {
      const one = irloom.sum(shown, item, i), single = item.row ? price(item.row[8], i) : null;
      const each = (kind) => (item.row && !single ? "not known" : `${amount(one[kind], kind)}  ${percent(irloom.share(shown, item, kind, i))}`);
      const bound = single && data.device ? (single.compute ? "compute" : "memory") : "";
      return h("tr", {}, head(work.name), cell(each("flops")), cell(each("bytes")), cell(data.device ? `${each("time")} ${bound}` : "no device"));
    });
    const columns = h("tr", {}, ["", "FLOPs", "bytes", "time"].map((word) => h("th", { scope: "col" }, word)));
    const worst = irloom.error(item, step), { runs } = irloom.sum(shown, item, 0);
    return section("In a step", h("table", { class: "costs" }, h("thead", {}, columns), h("tbody", {}, rows)),
      item.row && runs > 1 ? h("p", { class: "note" }, `all ${runs} runs of it together`) : null,
      worst === null ? null : h("p", {}, `relative error after ${data.steps[step].name}: ${amount(worst, "error")}`));
  }

  function nearSection(item, { step }) {
    const places = new Set((item.isGroup ? item.leaves : [item]).filter((l) => l.row).map((l) => `${l.fn}.${l.name}`));
    const rows = data.steps.flatMap((s) => s.near.filter(([where]) => places.has(where)).map((miss) => [s, miss]));
    if (!rows.length) return null;
    return section("Almost matched", h("ul", {}, rows.slice(0, 30).map(([s, [where, why]]) =>
      h("li", {}, h("b", {}, s.name), ` ${where}: ${why}`, data.steps[step] === s ? " (this pass)" : ""))));
  }

  /** The program, its figures, its passes. */
  function programPanel({ pass, step, on }) {
    const state = data.states[pass];
    return [
      heading(data.model, `irloom ${data.irloom}`, []),
      section("Figures", table(data.figures.map(([name, value]) => [head(name), cell(value)]))),
      data.steps.length ? section("Passes", passTable(pass, on)) : null,
      step >= 0 ? stepSection(data.steps[step], on) : null,
      state.header.length ? h("details", {}, h("summary", {}, "Header"), h("pre", { class: "ir" }, state.header.join("\n"))) : null,
    ];
  }

  function passTable(pass, on) {
    const measured = data.steps.some((s) => s.numerics);
    const names = ["pass", "nodes", "changes", "near", "ms", ...(measured ? ["error"] : [])];
    const start = row(0, "trace", "", "", "", null);
    function row(at, name, changes, near, ms, numerics) {
      const button = h("button", { type: "button", class: "link", "aria-current": at === pass ? "step" : null, onclick: () => on.pass(at) }, name);
      const cells = [String(data.states[at].nodes), changes, near, ms, ...(measured ? [showNumerics(numerics)] : [])];
      return h("tr", { class: at === pass ? "here" : "" }, h("th", { scope: "row" }, button), cells.map((words) => cell(words)));
    }
    const rows = data.steps.map((s, i) => row(i + 1, s.text, String(s.changes.length), s.near.length ? String(s.near.length) : "", (s.seconds * 1e3).toFixed(0), s.numerics));
    return h("table", { class: "passes" }, h("thead", {}, h("tr", {}, names.map((n) => h("th", { scope: "col" }, n)))), h("tbody", {}, start, rows));
  }

  function showNumerics(numerics) {
    if (!numerics) return "";
    const relative = numerics.relative ?? numerics.error;
    return relative === undefined ? "" : amount(relative, "error");
  }

  function stepSection(step, on) {
    const near = step.near.slice(0, 40).map(([where, why]) => h("li", {}, place(where, on), why ? `: ${why}` : ""));
    const changes = step.changes.slice(0, 60).map((change) => {
      const cut = change.indexOf(": ");
      return h("li", {}, cut < 0 ? change : [place(change.slice(0, cut), on), change.slice(cut)]);
    });
    const more = (all, some) => (all.length > some.length ? h("p", { class: "note" }, `and ${all.length - some.length} more`) : null);
    const rows = step.numerics ? Object.entries(step.numerics).filter(([, v]) => typeof v !== "object") : [];
    return section(`What ${step.name} did`,
      rows.length ? table(rows.map(([key, value]) => [head(key), cell(typeof value === "number" ? value.toPrecision(3) : String(value))])) : null,
      changes.length ? h("ul", { class: "places" }, changes) : h("p", {}, "nothing"), more(step.changes, changes),
      near.length ? h("h4", {}, "Almost") : null, near.length ? h("ul", { class: "places" }, near) : null, more(step.near, near));
  }

  const place = (where, on) => h("button", { type: "button", class: "link", onclick: () => on.place(where) }, where);

  Object.assign(irloom, { leafPanel, groupPanel, programPanel });
}
