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

// Charts: those of the first screen at once, others when they come near.
const specs = JSON.parse(document.getElementById("specs").textContent);
const options = { renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false }, config: { background: null, view: { stroke: null }, axis: { labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal" }, legend: { labelFontSize: 11 } } };
const drawn = (target, spec) => draw(target, spec, options).then(() => target.classList.add("drawn"), error => { target.textContent = `This chart could not be drawn: ${error.message}`; });
const whenNear = (elements, act) => {
  const near = new IntersectionObserver(entries => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      act(target);
    }
  }, { rootMargin: "300px" });
  for (const element of elements) near.observe(element);
};
for (const chart of document.querySelectorAll(".chart.first")) await drawn(chart, specs[chart.dataset.spec]);
whenNear(document.querySelectorAll(".chart[data-spec]:not(.first)"), chart => drawn(chart, specs[chart.dataset.spec]));

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
    const shown = table.buttons.exportData({ orthogonal: "display", columns: ":visible" });
    copy(formats[kind](shown.header, shown.body.map(row => row.map(String))), kind);
  },
}));
const onDemand = table => {
  const title = table.querySelector("th.on-demand")?.textContent;
  return title ? [{
    text: `Show ${title.replace(/, %$/, "")}`,
    action: function (_, api) {
      const column = api.column(".on-demand");
      column.visible(!column.visible());
      this.text(`${column.visible() ? "Hide" : "Show"} ${title.replace(/, %$/, "")}`);
    },
  }] : [];
};
const bytes = Uint8Array.from(atob(document.getElementById("sorting").textContent), letter => letter.charCodeAt(0));
const address = URL.createObjectURL(new Blob([bytes], { type: "text/javascript" }));
const { jQuery } = await import(address);
URL.revokeObjectURL(address);
const layout = table => ({ topStart: "search", topEnd: null, bottomStart: { buttons: [...onDemand(table), ...buttons] }, bottomEnd: null });
const sorted = (table, more = {}) => jQuery(table).DataTable({
  paging: false, order: [], autoWidth: false, columnDefs: [{ targets: ".on-demand", visible: false }],
  layout: layout(table), language: { search: "Search " }, ...more });
for (const table of document.querySelectorAll("table.sortable")) {
  const folded = table.closest("details");
  if (folded) folded.addEventListener("toggle", () => sorted(table), { once: true });
  else sorted(table);
}

// Classes: which ones students get right, and what they take others for.
const section = document.getElementById("classes");
if (section) {
  const read = id => JSON.parse(document.getElementById(id).textContent);
  const { names, settings } = read("students"), spec = read("confusion");
  const setting = section.querySelector("[name=setting]"), method = section.querySelector("[name=by]");
  const fill = (select, texts) => select.replaceChildren(...texts.map((text, place) => new Option(text, place)));
  const cell = (row, text, tag = "td") => { const made = row.insertCell(); made.textContent = text; return made; };
  function mistakes() {
    const { methods, dataset } = settings[setting.value], of = methods[method.value];
    if (!of?.confusion) return;
    const triples = [];
    for (let i = 0; i < of.confusion.length; i += 3) triples.push(of.confusion.slice(i, i + 3));
    const named = ([name, guess, share]) => ({ name: names[dataset][name], guess: names[dataset][guess], share: share / 10 });
    const values = [...of.top1.map((share, place) => [place, place, share]), ...triples].map(named);
    drawn(section.querySelector(".chart"), { ...spec, data: { values }, height: Math.max(260, Math.min(760, 16 * of.top1.length)) });
    const worst = document.createElement("table");
    const head = worst.createTHead().insertRow();
    for (const title of ["class", "taken for", "share of the class, %"]) head.append(Object.assign(document.createElement("th"), { textContent: title }));
    const body = worst.createTBody();
    for (const { name, guess, share } of triples.slice(0, 10).map(named)) {
      const row = body.insertRow();
      for (const text of [name, guess, share.toFixed(1)]) cell(row, text);
    }
    section.querySelector("#worst").replaceChildren(worst);
  }
  function show() {
    const { methods, dataset } = settings[setting.value];
    const table = Object.assign(document.createElement("table"), { className: "sortable" });
    section.querySelector("#by-class").replaceChildren(table);
    const data = names[dataset].map((name, place) => [name, ...methods.map(of => (of.top1[place] / 10).toFixed(1))]);
    const columns = [{ title: "class", className: "fixed" }, ...methods.map(of => ({ title: of.name, type: "num" }))];
    sorted(table, { data, columns, columnDefs: [{ targets: 0, render: jQuery.fn.dataTable.render.text() }], paging: data.length > 25, pageLength: 25,
      layout: { ...layout(table), bottomEnd: data.length > 25 ? "paging" : null } });
    const chosen = method.value;
    fill(method, methods.map(of => of.name));
    method.value = methods[chosen] ? chosen : 0;
    section.querySelector("#mistakes").hidden = !methods[method.value].confusion;
    mistakes();
  }
  fill(setting, settings.map(each => each.title));
  setting.addEventListener("change", show);
  method.addEventListener("change", mistakes);
  whenNear([section], show);
}
document.getElementById("copy-command")?.addEventListener("click", () => copy(document.querySelector(".command").textContent, "a command"));

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
    enlarged.querySelector("form p").textContent = image.alt;
    const shown = [image];
    if (strip.dataset.nearest) {
      const nearest = Object.assign(new Image(), { src: strip.dataset.nearest, alt: "Below each, the nearest real image of its class" });
      shown.push(Object.assign(document.createElement("p"), { textContent: `${nearest.alt} in the teacher's features` }), nearest);
    }
    enlarged.querySelector("div").replaceChildren(...shown);
    enlarged.showModal();
  });
}
enlarged.addEventListener("click", event => { if (event.target === enlarged) enlarged.close(); });
for (const overview of document.querySelectorAll(".overview")) {
  overview.querySelector("input").addEventListener("input", event => {
    const sought = event.target.value.toLowerCase();
    for (const row of overview.querySelectorAll(".row:not(.head)")) row.hidden = !row.firstElementChild.textContent.toLowerCase().includes(sought);
  });
}
root.classList.add("ready");
