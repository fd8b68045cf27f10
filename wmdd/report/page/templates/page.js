// Colours: as the system has them, or as chosen.
const root = document.documentElement, theme = document.getElementById("theme"), system = matchMedia("(prefers-color-scheme: dark)");
const names = ["auto", "light", "dark"];
const kept = () => { try { return localStorage.getItem("theme") ?? "auto"; } catch { return "auto"; } };
let chosen = names.includes(kept()) ? kept() : "auto";
function colour() {
  root.classList.toggle("dark", chosen === "dark" || (chosen === "auto" && system.matches));
  theme.querySelector("span").textContent = chosen;
  theme.setAttribute("aria-label", chosen === "auto" ? "Colours: as the system has them" : `Colours: ${chosen}`);
}
theme.addEventListener("click", () => {
  chosen = names[(names.indexOf(chosen) + 1) % names.length];
  try { localStorage.setItem("theme", chosen); } catch { /* a file may not be allowed to keep anything */ }
  colour();
});
system.addEventListener("change", colour);
colour();

// What was done, said for a moment.
const said = document.getElementById("said");
function say(text) {
  said.textContent = text;
  said.classList.add("on");
  setTimeout(() => said.classList.remove("on"), 1800);
}

// Tables: sorted, searched, copied as they are shown.
const escaped = text => text.replace(/[\\&%$#_{}]/g, found => found === "\\" ? "\\textbackslash{}" : `\\${found}`).replaceAll("±", "$\\pm$").replaceAll("−", "$-$");
const quoted = text => /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
const formats = {
  Markdown: (head, rows) => [head, head.map(() => "---"), ...rows].map(row => `| ${row.map(cell => cell.replaceAll("|", "\\|")).join(" | ")} |`).join("\n"),
  LaTeX: (head, rows) => [`\\begin{tabular}{${"l".repeat(head.length)}}`, "\\toprule", head.map(escaped).join(" & ") + " \\\\", "\\midrule",
    ...rows.map(row => row.map(escaped).join(" & ") + " \\\\"), "\\bottomrule", "\\end{tabular}"].join("\n"),
  CSV: (head, rows) => [head, ...rows].map(row => row.map(quoted).join(",")).join("\n"),
};
async function copy(text, kind) {
  window.copied = text;
  try { await navigator.clipboard.writeText(text); } catch {
    const area = Object.assign(document.createElement("textarea"), { value: text });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  say(`Copied as ${kind}`);
}
const buttons = Object.keys(formats).map(kind => ({
  text: `Copy ${kind}`,
  action: (_, table) => {
    const found = table.buttons.exportData({ orthogonal: "display" });
    copy(formats[kind](found.header, found.body.map(row => row.map(String))), kind);
  },
}));
const bytes = Uint8Array.from(atob(document.getElementById("sorting").textContent), letter => letter.charCodeAt(0));
const address = URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
const { jQuery } = await import(address);
URL.revokeObjectURL(address);
for (const table of document.querySelectorAll("table.sortable")) {
  jQuery(table).DataTable({ paging: false, order: [], autoWidth: false, layout: { topStart: { buttons }, topEnd: "search", bottomStart: "info", bottomEnd: null } });
}

// Images: chosen, enlarged.
for (const gallery of document.querySelectorAll(".gallery")) {
  const form = gallery.querySelector("form");
  const choose = () => {
    for (const part of gallery.querySelectorAll(".class")) part.hidden = form.class.value !== "" && part.dataset.class !== form.class.value;
    for (const strip of gallery.querySelectorAll(".strip"))
      strip.hidden = strip.dataset.ipc !== form.ipc.value || (form.method.value !== "" && strip.dataset.method !== form.method.value);
  };
  form.addEventListener("change", choose);
  form.addEventListener("submit", event => event.preventDefault());
  choose();
}
const enlarged = document.getElementById("enlarged");
for (const strip of document.querySelectorAll(".strip")) {
  strip.addEventListener("click", () => {
    const image = strip.querySelector("img").cloneNode();
    image.removeAttribute("style");
    enlarged.querySelector("p").textContent = image.alt;
    enlarged.querySelector("div").replaceChildren(image);
    enlarged.showModal();
  });
}
enlarged.addEventListener("click", event => { if (event.target === enlarged) enlarged.close(); });

// Charts: drawn when they come near.
const specs = JSON.parse(document.getElementById("specs").textContent);
const options = { renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false }, config: { background: null, view: { stroke: null }, axis: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal" }, legend: { labelFontSize: 11 } } };
const near = new IntersectionObserver(entries => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    draw(target, specs[target.dataset.spec], options).then(() => target.classList.add("drawn"), error => { target.textContent = `This chart could not be drawn: ${error.message}`; });
  }
}, { rootMargin: "300px" });
for (const chart of document.querySelectorAll(".chart")) near.observe(chart);
root.classList.add("ready");
