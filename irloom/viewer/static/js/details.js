// The panel on one op application: all that is known of it.
"use strict";
{
  const { data, h, ops, attrs, text, typeOf, amount, percent, price } = irloom;
  const { section, cell, head, code, note, button, link, table, heading, typeFacts, list } = irloom.elements;
  const MOST = 12;

  function leafPanel(context, leaf) {
    if (!leaf.row) return boundaryPanel(context, leaf);
    const [, op, , set] = leaf.row;
    const line = irloom.irText(leaf.row);
    return [
      heading(ops[op].name, leaf.name, [copyButton(line)]),
      h("pre", { class: "ir", tabindex: "0", "aria-label": "the node as IR text" }, line),
      section("Results", table(leaf.row[4].map((result, out) => resultRow(context, leaf, result, out)))),
      section("Operands", table(leaf.args.map((arg, i) => operandRow(context, ops[op], arg, i)))),
      attrs[set].length ? section("Attributes", table(attrs[set].map(attributeRow))) : null,
      weights(leaf),
      section("Where from", table(origin(context, leaf))),
      costSection(context, leaf),
      nearSection(context, leaf),
      meaning(ops[op]),
    ];
  }

  function boundaryPanel({ scene, on }, leaf) {
    const readers = (scene.readers.get(leaf) || []).map((edge) => jump(edge.to, on));
    return [
      heading(leaf.label, leaf.kind),
      section("Type", typeFacts(leaf.type)),
      readers.length ? section("Read by", h("p", { class: "links" }, readers)) : null,
    ];
  }

  const jump = (leaf, on) => link(leaf.name || leaf.label, () => on.jump(leaf.key));

  function copyButton(words) {
    return button("Copy", async (event) => {
      await navigator.clipboard.writeText(words);
      event.target.textContent = "Copied";
    });
  }

  function resultRow({ scene, on }, leaf, [name, type, buffer], out) {
    const readers = (scene.readers.get(leaf) || []).filter((edge) => edge.out === out).map((edge) => edge.to);
    const each = [...new Set(readers)];
    const more = each.length > MOST ? ` and ${each.length - MOST} more` : "";
    const read = h(
      "p",
      { class: "links" },
      "read by ",
      each.slice(0, MOST).map((to) => jump(to, on)),
      more,
    );
    const lives = buffer ? note(`lives in buffer ${text(buffer)}`) : null;
    return [head(text(name)), cell(typeFacts(type), lives, each.length ? read : null)];
  }

  function operandRow({ on }, op, arg, i) {
    const name = op.operands[Math.min(i, op.operands.length - 1)] || `operand ${i}`;
    if (arg.literal !== undefined) return [head(name), cell(code(arg.literal))];
    if (arg.weight) return [head(name), cell("weight ", code(arg.name), typeFacts(arg.weight[1]))];
    if (!arg.leaf) return [head(name), cell(arg.name)];
    return [head(name), cell(jump(arg.leaf, on), typeFacts(typeOf(arg)))];
  }

  function attributeRow([key, value, isDefault]) {
    const kind = isDefault ? "default" : "";
    return [
      h("th", { scope: "row", class: kind }, key),
      h("td", { class: kind }, code(value), isDefault ? " (default)" : ""),
    ];
  }

  function weights(leaf) {
    const used = leaf.args.filter((arg) => arg.weight);
    const row = (arg) =>
      h("div", { class: "weight" }, h("b", {}, arg.name), typeFacts(arg.weight[1]), code(text(arg.weight[3])));
    return used.length ? section("Weights", used.map(row)) : null;
  }

  function origin({ on, step, side }, leaf) {
    const [path, line] = [text(leaf.row[5]), text(leaf.row[6])];
    const rows = [[head("function"), cell(code(leaf.fn))]];
    if (line) rows.unshift([head("source"), cell(code(line))]);
    if (path) rows.unshift([head("module"), cell(code(path))]);
    rows.push([head("made by"), cell(irloom.madeBy(leaf))]);
    const kind = irloom.mark(leaf, step, side);
    const twin = irloom.twin(leaf, step, side);
    if (kind)
      rows.push([head("this pass"), cell(kind, twin && [side === "after" ? ": was " : ": is now ", code(twin)])]);
    const touched = data.steps.map((pass, i) => [pass, irloom.mark(leaf, i, "after"), i]).filter((row) => row[1]);
    const links = touched.map(([pass, mark, i]) => link(`${irloom.SIGNS[mark]} ${pass.name}`, () => on.pass(i + 1)));
    if (links.length) rows.push([head("touched by"), cell(h("p", { class: "links" }, links))]);
    return rows;
  }

  /** FLOPs, bytes and time of an item in a step, and which share of the step that is. */
  function costSection({ shown, step }, item) {
    const rows = data.workloads.map((work, i) => {
      const sum = irloom.sum(shown, item, i);
      const single = item.row ? price(item.row[8], i) : null;
      const each = (kind) => {
        if (item.row && !single) return "not known";
        return `${amount(sum[kind], kind)}  ${percent(irloom.share(shown, item, kind, i))}`;
      };
      const bound = single ? (single.compute ? " compute" : " memory") : "";
      const time = data.device ? `${each("time")}${bound}` : "no device";
      return [head(work.name), cell(each("flops")), cell(each("bytes")), cell(time)];
    });
    const { runs } = irloom.sum(shown, item, 0);
    const worst = irloom.error(item, step);
    const error = worst === null ? null : `relative error after ${data.steps[step].name}: ${amount(worst, "error")}`;
    return section(
      "In a step",
      table(rows, { kind: "costs", columns: ["", "FLOPs", "bytes", "time"] }),
      item.row && runs > 1 ? note(`all ${runs} runs of it together`) : null,
      error && h("p", {}, error),
    );
  }

  /** Where passes almost matched inside of an item. */
  function nearSection({ step }, item) {
    const leaves = (item.isGroup ? item.leaves : [item]).filter((leaf) => leaf.row);
    const places = new Set(leaves.map((leaf) => `${leaf.fn}.${leaf.name}`));
    const found = data.steps.flatMap((pass, i) =>
      pass.near.filter((row) => places.has(row[0])).map((row) => [pass, row, i]),
    );
    const show = ([pass, [where, why], i]) => [
      h("b", {}, pass.name),
      ` ${where}: ${why}`,
      i === step ? " (this pass)" : "",
    ];
    return found.length ? section("Almost matched", list(found, 30, show)) : null;
  }

  const meaning = (op) =>
    h("details", {}, h("summary", {}, `What ${op.name} does`), code(op.signature), h("p", { class: "doc" }, op.doc));

  Object.assign(irloom, { leafPanel, costSection, nearSection });
}
