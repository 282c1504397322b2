"use strict";
(() => {
  const root = document.documentElement;
  const charts = JSON.parse(document.getElementById("data").textContent);
  const drawn = {};
  const wide = matchMedia("(min-width: 600px)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const choices = ["auto", "light", "dark"];
  let choice = recall() || "auto";

  // A page opened from a file may have no storage; the theme is then chosen anew each time.
  function recall() { try { const kept = localStorage.getItem("inferscope-theme"); return choices.includes(kept) ? kept : null; } catch { return null; } }
  function remember(value) { try { localStorage.setItem("inferscope-theme", value); } catch { /* not kept */ } }

  function paint(forced) {
    root.dataset.theme = forced || (choice === "auto" ? (dark.matches ? "dark" : "light") : choice);
    const button = document.getElementById("theme");
    button.textContent = { auto: "◐ auto", light: "○ light", dark: "● dark" }[choice];
    button.setAttribute("aria-label", `Colours: ${choice}. Change`);
    for (const key of Object.keys(drawn)) draw(key, drawn[key]);
  }

  function colours() {
    const style = getComputedStyle(root);
    const of = (name) => style.getPropertyValue(name).trim();
    return { ink: of("--ink"), line: of("--line"), paper: of("--paper"), dim: of("--dim") };
  }

  function dressed(key, layout) {
    const { ink, line, paper, dim } = colours();
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: dim, ticks: "outside", tickcolor: line, fixedrange: !wide.matches };
    // On a narrow screen the words beside the last bars of the ledger need more room.
    const room = key === "ledger" && !wide.matches ? { range: [0, layout.xaxis.range[1] * 1.35] } : {};
    const narrow = wide.matches ? {} : { ...room, tickfont: { size: 10 }, title: { ...(layout.xaxis || {}).title, font: { size: 11 } } };
    return {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, size: wide.matches ? 12 : 11, family: "system-ui, sans-serif" },
      margin: { l: wide.matches ? 60 : 44, r: 12, t: 18, b: 44, ...(layout.margin || {}) },
      hoverlabel: { bgcolor: paper, bordercolor: dim, font: { color: ink } },
      legend: { ...(layout.legend || {}), font: { size: wide.matches ? 12 : 10 } },
      xaxis: { automargin: true, ...axis, ...(layout.xaxis || {}), ...narrow },
      yaxis: { automargin: true, ...axis, ...(layout.yaxis || {}), ...(wide.matches ? {} : { tickfont: { size: 10 } }) },
      autosize: true,
    };
  }

  function draw(key, index) {
    const one = charts[key][index];
    drawn[key] = index;
    document.getElementById(`note-${key}`).textContent = one.layout.meta || "";
    return Plotly.react(`chart-${key}`, structuredClone(one.data), dressed(key, one.layout),
      { responsive: true, displaylogo: false, displayModeBar: wide.matches ? "hover" : false, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"] });
  }

  function sort(button) {
    const cell = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
    const column = cell.cellIndex;
    const up = cell.getAttribute("aria-sort") === "descending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const known = (row) => row.cells[column].dataset.n;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [known(a), known(b)];
      if (x !== undefined && y !== undefined) return up ? x - y : y - x;
      if (x !== undefined || y !== undefined) return x !== undefined ? -1 : 1; // what is unknown stays last
      const order = a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true });
      return up ? order : -order;
    });
    body.append(...rows);
  }

  // Charts that offer the same choices belong together and change together.
  function choose(select) {
    const offers = (one) => [...one.options].map((option) => option.text).join("\n");
    for (const other of document.querySelectorAll("select[data-for]")) {
      if (other !== select && offers(other) !== offers(select)) continue;
      other.value = select.value;
      draw(other.dataset.for, Number(select.value));
    }
  }

  document.getElementById("theme").addEventListener("click", () => {
    choice = choices[(choices.indexOf(choice) + 1) % choices.length];
    remember(choice);
    paint();
  });
  dark.addEventListener("change", () => paint());
  wide.addEventListener("change", () => paint());
  addEventListener("beforeprint", () => paint("light"));
  addEventListener("afterprint", () => paint());
  for (const button of document.querySelectorAll("table.sortable th button")) button.addEventListener("click", () => sort(button));
  for (const select of document.querySelectorAll("select[data-for]")) select.addEventListener("change", () => choose(select));
  paint();
  Promise.all(Object.keys(charts).map((key) => draw(key, 0))).then(() => { root.dataset.ready = "1"; });
})();
