// The page's data, and words for it. The format is described in irloom/viewer/document.py.
"use strict";
var irloom = {};
{
  const data = JSON.parse(document.getElementById("irloom-data").textContent);
  const { strings, types, ops, attrs, costs, params, stmts, funcs } = data.tables;
  const NODE = 0,
    CALL = 1,
    LOOP = 2;

  const text = (ref) => strings[ref];

  /** A cost row as numbers for one workload; null where nothing is known. */
  function price(cost, workload) {
    if (cost < 0) return null;
    const [flops, bytes, seconds, compute] = costs[cost].slice(workload * 4, workload * 4 + 4);
    return { flops, bytes, time: seconds, compute: Boolean(compute) };
  }

  function showArg(arg) {
    if (arg === null) return "None";
    return Array.isArray(arg) ? arg[0] : text(arg);
  }

  function showResult([name, type, buffer]) {
    return `${text(name)}: ${types[type].text}${buffer ? ` @ ${text(buffer)}` : ""}`;
  }

  /** A statement in the IR's own text. */
  function irText(row) {
    if (row[0] !== NODE) return "";
    const [, op, args, set, results, path, line] = row;
    const given = args.map(showArg);
    for (const [key, value, isDefault] of attrs[set]) if (!isDefault) given.push(`${key}=${value}`);
    const call = `${ops[op].name}(${given.join(", ")})`;
    const loc = [text(path), text(line)].filter(Boolean).join(" ");
    if (results.length === 1) return `${showResult(results[0])} = ${call}${loc ? `  # ${loc}` : ""}`;
    const shown = results.map((r) => showResult(r).split(": ").slice(1).join(": ")).join(", ");
    return `${results.map((r) => text(r[0])).join(", ")} = ${call}  # -> ${shown}${loc ? `  ${loc}` : ""}`;
  }

  const UNITS = {
    flops: ["FLOP", 1000, ["", "k", "M", "G", "T", "P"]],
    bytes: ["B", 1024, ["", "Ki", "Mi", "Gi", "Ti", "Pi"]],
  };

  /** A measure for people: `amount(1536, "bytes")` is "1.50 KiB". */
  function amount(n, kind) {
    if (n === null || n === undefined) return "not known";
    if (kind === "time") {
      if (n === 0) return "0 s";
      if (n < 1e-6) return `${(n * 1e9).toPrecision(3)} ns`;
      if (n < 1e-3) return `${(n * 1e6).toPrecision(3)} µs`;
      return n < 1 ? `${(n * 1e3).toPrecision(3)} ms` : `${n.toPrecision(3)} s`;
    }
    if (kind === "error") return n === 0 ? "0" : n.toExponential(1);
    const [unit, base, steps] = UNITS[kind];
    let i = 0;
    while (n >= base && i < steps.length - 1) {
      n /= base;
      i += 1;
    }
    const digits = i === 0 || n >= 1000 ? String(Math.round(n)) : n.toPrecision(3);
    return `${digits} ${steps[i]}${unit}`;
  }

  function percent(share) {
    if (!(share > 0)) return "0 %";
    return share < 0.0001
      ? "<0.01 %"
      : `${share >= 0.0995 ? (share * 100).toFixed(0) : (share * 100).toPrecision(2)} %`;
  }

  /** Make an element: `h("b", {class: "x", onclick: f}, "text", child)`. Text never becomes markup. */
  function h(tag, given = {}, ...children) {
    const made = document.createElement(tag);
    for (const [key, value] of Object.entries(given)) {
      if (value === null || value === undefined || value === false) continue;
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
    return made;
  }

  Object.assign(irloom, {
    data,
    types,
    ops,
    attrs,
    params,
    stmts,
    funcs,
    NODE,
    CALL,
    LOOP,
    text,
    price,
    showArg,
    irText,
    amount,
    percent,
    h,
  });
}
