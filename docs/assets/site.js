// SPDX-License-Identifier: AGPL-3.0-or-later
// Filters the tables of losses as one types: every word must be in a row. Groups without rows are hidden.
for (const losses of document.querySelectorAll("[data-filter]")) {
  const box = document.createElement("div");
  const input = document.createElement("input");
  const count = document.createElement("output");
  box.className = "losses-filter";
  input.type = "search";
  input.placeholder = input.ariaLabel = losses.dataset.filter;
  box.append(input, count);
  losses.prepend(box);

  const rows = [...losses.querySelectorAll("tbody tr")];
  const groups = [...losses.querySelectorAll("h3")];
  const tableOf = (heading) => {
    const next = heading.nextElementSibling;
    return next.matches("table") ? next : next.querySelector("table");
  };
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
    for (const heading of groups) {
      const shown = tableOf(heading).querySelector("tbody tr:not([hidden])");
      heading.hidden = heading.nextElementSibling.hidden = !shown;
    }
    count.textContent = `${rows.filter((row) => !row.hidden).length} / ${rows.length}`;
  };
  input.addEventListener("input", filter);
  filter();
}
