// The tree at the left: what the canvas shows, for reading, for the keyboard and for screen readers.
"use strict";
{
  const { h, title } = irloom;

  class Outline {
    constructor(element, on) {
      Object.assign(this, { element, on });
      element.addEventListener("keydown", (event) => this.key(event));
    }

    show(pane) {
      const { shown, how } = pane,
        focused = this.element.contains(document.activeElement);
      const rows = [];
      const visit = (box, level, at, of) => {
        if (level > 0)
          rows.push(this.row(box, level, at, of, noted(box.item, irloom.marks(shown, box.item, how.step, pane.side))));
        box.children.forEach((child, i) => visit(child, level + 1, i + 1, box.children.length));
      };
      visit(shown.root, 0, 1, 1);
      this.element.replaceChildren(...rows);
      this.select(how.selected, focused);
    }

    row({ item, open }, level, at, of, counts) {
      const words = item.isGroup ? title(item, open) : `${item.label}`;
      return h(
        "div",
        {
          role: "treeitem",
          tabindex: "-1",
          "data-key": item.key,
          style: `padding-left:${level * 14 - 4}px`,
          class: item.isGroup ? "group" : item.kind,
          "aria-level": level,
          "aria-posinset": at,
          "aria-setsize": of,
          "aria-expanded": item.isGroup ? String(open) : null,
          "aria-selected": "false",
          onclick: () => this.on.select(item.key),
          ondblclick: () => item.isGroup && this.on.toggle(item.key),
        },
        h("span", { class: "label" }, words),
        item.name ? h("span", { class: "name" }, item.name) : null,
        counts ? h("span", { class: "marks" }, counts) : null,
      );
    }

    select(key, focus) {
      const rows = [...this.element.children];
      for (const row of rows) {
        const chosen = row.dataset.key === key;
        row.setAttribute("aria-selected", String(chosen));
        row.tabIndex = chosen ? 0 : -1;
        if (chosen) row.scrollIntoView({ block: "nearest" });
        if (chosen && focus) row.focus();
      }
      if (rows.length && !rows.some((row) => row.tabIndex === 0)) rows[0].tabIndex = 0;
    }

    key(event) {
      const row = event.target.closest("[role=treeitem]");
      if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
      const step = {
        ArrowDown: row.nextElementSibling,
        ArrowUp: row.previousElementSibling,
        Home: this.element.firstElementChild,
        End: this.element.lastElementChild,
      }[event.key];
      const open = row.getAttribute("aria-expanded");
      if (step) this.on.select(step.dataset.key);
      else if (event.key === "ArrowRight" && open === "false") this.on.toggle(row.dataset.key);
      else if (event.key === "ArrowLeft" && open === "true") this.on.toggle(row.dataset.key);
      else if (event.key === "ArrowLeft") this.on.parent(row.dataset.key);
      else if (event.key === "Enter" && open) this.on.toggle(row.dataset.key);
      else return;
      if (step) step.focus();
      event.preventDefault();
      event.stopPropagation();
    }
  }

  /** Of a group how many of each mark, of a node its mark. */
  const noted = (item, counts) =>
    item.isGroup
      ? irloom.showMarks(counts)
      : Object.keys(counts)
          .map((kind) => irloom.SIGNS[kind])
          .join("");

  irloom.Outline = Outline;
}
