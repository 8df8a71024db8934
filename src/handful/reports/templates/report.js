"use strict";
// Tables sort by a click on a header: first from small to large, then the other way round. Empty cells stay last.
for (const table of document.querySelectorAll("table")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.firstElementChild.addEventListener("click", () => {
    const down = header.getAttribute("aria-sort") === "ascending";
    const number = header.classList.contains("number");
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: row.cells[column].dataset.key }));
    rows.sort((a, b) => {
      if (a.key === "" || b.key === "") return (a.key === "") - (b.key === "");
      const order = number ? a.key - b.key : a.key.localeCompare(b.key, undefined, { numeric: true });
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows.map(({ row }) => row));
    headers.forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
  }));
}
