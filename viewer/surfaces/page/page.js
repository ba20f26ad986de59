/* Shows what the server says, and asks it for what the user wants to see: what is shown, and whether it can be, is
   decided there. Names come from logs, and are only ever text. */
"use strict";

const form = document.getElementById("look");
const controls = form.elements;
const byId = (id) => document.getElementById(id);
const dark = matchMedia("(prefers-color-scheme: dark)").matches;
document.documentElement.dataset.theme = (new URLSearchParams(location.search).get("dark") ?? `${dark}`) === "true" ? "dark" : "light";
if (innerWidth < 760) byId("controls").open = byId("found").open = false;

function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

/* Where the server says why it refuses a value. */
const names = [...new Set([...controls].map((control) => control.name).filter(Boolean))];
for (const name of names) {
  const control = form.querySelector(`[name=${name}]`);
  control.setAttribute("aria-describedby", `refused-${name}`);
  control.closest("details > *, .views").after(element("p", "", { id: `refused-${name}`, className: "refused", role: "alert" }));
}

/* matplotlib's figure, as wide as the page lets it be. Its script takes the focus once by itself, which is let pass, and
   then with each click, which is not to scroll the page. */
const address = new URL(`socket${location.search}`, location.href);
address.protocol = address.protocol.replace("http", "ws");
if (dark) address.searchParams.set("prefers", "dark");
const socket = new WebSocket(address);
mpl.extensions = ["png", "svg", "pdf"];
const figure = new mpl.figure("figure", socket, download, byId("figure"));
const canvas = figure.canvas_div;
figure._resize_canvas = () => {};
canvas.focus = () => { canvas.focus = () => HTMLElement.prototype.focus.call(canvas, { preventScroll: true }); };
figure.format_dropdown.setAttribute("aria-label", "Format of the download");
canvas.setAttribute("role", "img");
canvas.before(figure.root.lastChild);
socket.addEventListener("open", () => {
  figure.resizeObserverInstance.unobserve(canvas);
  figure.resizeObserverInstance.observe(canvas);
});
socket.addEventListener("close", () => {
  figure.send_message = () => {};
  show.status({ words: "The viewer has ended, or cannot be reached: once it runs, reload this page.", failed: true });
});

function download(_, format) {
  const query = new URLSearchParams({ session: known.session });
  element("a", "", { href: `figure.${format}?${query}`, download: `${controls.view.value}.${format}` }).click();
}

/* What the server says, by name. */
const known = {};
let arrived = false;
let awaited = false;
document.addEventListener("selectionchange", () => awaited && show.findings(known.findings));
addEventListener("popstate", () => figure.send_message("address", { query: location.search.slice(1) }));
const show = {
  status({ words, failed }) {
    byId("status").textContent = document.title = words;
    byId("status").classList.toggle("refused", failed);
    describe();
  },
  notices: (lines) => byId("notices").replaceChildren(...(lines.length ? lines : ["none"]).map((line) => element("li", line))),
  findings({ words, listed, more }) {
    const [list, selected] = [byId("findings"), getSelection()];
    byId("found").hidden = !listed.length;
    byId("found-words").textContent = `Findings: ${words}`;
    /* What is selected, to be copied, stays until it is let go. */
    awaited = !selected.isCollapsed && selected.containsNode(list, true);
    if (awaited) return;
    list.replaceChildren(...listed.map(({ number, severity, where, sentence, advice }) => {
      const item = element("li", "", { value: number });
      item.append(element("strong", severity, { className: severity }), ` ${where}: ${sentence} `, element("span", advice));
      return item;
    }), ...(more ? [element("li", more, { className: "more" })] : []));
  },
  choices(choices) {
    for (const name of ["run", "rank", "statistic"]) {
      const select = controls[name];
      select.replaceChildren(...choices[name].map((value) => element("option", value || "all", { value })));
      select.closest("label").hidden = name !== "statistic" && choices[name].length < 3 + (name === "rank");
    }
    const boxes = choices.metrics.map((value) => {
      const label = element("label", value);
      label.prepend(element("input", "", { type: "checkbox", name: "metrics", value }));
      return label;
    });
    byId("metrics").hidden = !boxes.length;
    byId("metrics").querySelectorAll("label").forEach((label) => label.remove());
    byId("metrics").append(...boxes);
  },
  params({ names, matching, there }) {
    const more = matching > names.length ? `; the first ${names.length} are` : "";
    byId("matching").textContent = controls.params.value || more ? `${matching} of ${there} parameters match${more}:` : "";
    byId("names").replaceChildren(...names.map((value) => element("option", "", { value })));
    byId("params").replaceChildren(...names.map((name) => {
      const item = element("li", "");
      item.append(element("button", name, { type: "button", value: name }));
      return item;
    }));
    describe();
  },
  values(values) {
    for (const [name, words] of Object.entries(values)) {
      const typing = controls[name] === document.activeElement && /text|search|range/.test(controls[name].type);
      if (name !== "metrics" && !typing) controls[name].value = words[0];
    }
    for (const box of byId("metrics").querySelectorAll("[type=checkbox]")) box.checked = values.metrics.includes(box.value);
    form.dataset.view = values.view[0];
    document.documentElement.dataset.theme = values.dark[0] === "true" ? "dark" : "light";
    byId("smoothness").textContent = values.smoothing[0];
    describe();
  },
  refused(reasons) {
    for (const name of names) {
      byId(`refused-${name}`).textContent = reasons[name] ?? "";
      form.querySelector(`[name=${name}]`).setAttribute("aria-invalid", name in reasons);
    }
  },
  query(query) {
    const place = (words) => ["view", "param", "run", "params"].map((name) => new URLSearchParams(words).get(name)).join();
    const [address, elsewhere] = [query ? `?${query}` : location.pathname, place(query) !== place(location.search)];
    /* Another place is one to come back from with the browser's own button; the first is where one comes from. */
    if (address !== (location.search || location.pathname)) {
      history[elsewhere && arrived ? "pushState" : "replaceState"](null, "", address);
    }
    arrived = true;
  },
};

function describe() {
  canvas.setAttribute("aria-label", `Figure, ${controls.view.value}: ${byId("status").textContent}`);
  for (const button of byId("params").querySelectorAll("button")) {
    button.setAttribute("aria-current", controls.view.value === "param" && button.value === controls.param.value);
  }
}

mpl.figure.prototype.handle_state = (_, { type, ...news }) => {
  Object.assign(known, news);
  for (const name of Object.keys(news)) show[name]?.(news[name]);
  if ("choices" in news) show.values(known.values);
};

/* What the user asks for. */
function ask() {
  figure.send_message("look", { query: new URLSearchParams(new FormData(form)).toString() });
}

let waiting;
function soon({ target }) {
  if (target.name === "smoothing") byId("smoothness").textContent = target.value;
  clearTimeout(waiting);
  waiting = setTimeout(ask, /text|search|range/.test(target.type) ? 300 : 0);
}
form.addEventListener("input", soon);
form.addEventListener("change", soon);
form.addEventListener("submit", (event) => event.preventDefault());
byId("params").addEventListener("click", ({ target }) => {
  if (target.value === undefined) return;
  controls.param.value = target.value;
  controls.view.value = "param";
  ask();
});
