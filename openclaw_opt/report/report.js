// Sorts a table by a click on its heading. Without this script the page is whole, in the order of the report.
"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  if (body.rows.length < 2) continue;
  table.querySelectorAll("thead th").forEach((head, column) => {
    head.setAttribute("aria-sort", "none");
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.children) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = (row) => {
        const cell = row.cells[column];
        return "sort" in cell.dataset ? parseFloat(cell.dataset.sort) : cell.textContent.trim();
      };
      const order = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1; // rows without a number stay last
        const by = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
        return down ? -by : by;
      };
      body.append(...[...body.rows].sort(order));
    });
  });
}
addEventListener("beforeprint", () => document.querySelectorAll("details:not(.numbers)").forEach((one) => (one.open = true)));
