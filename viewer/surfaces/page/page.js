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

/* What this page alone decides: it stands in the address behind what the server says of it. */
const own = {};
const addressOf = (query) => {
  const words = [query, `${new URLSearchParams(Object.entries(own).filter(([, value]) => value))}`].filter(Boolean);
  return words.length ? `?${words.join("&")}` : location.pathname;
};
function readdress() {
  history.replaceState(null, "", addressOf(known.query));
  show.findings(known.findings);
}

/* The server has answered: the address says what is shown now. */
function settle() {
  if (known.answered < asked) return;
  const address = addressOf(known.query);
  const place = (words) => ["view", "param", "run", "params"].map((name) => new URLSearchParams(words).get(name)).join();
  const elsewhere = leapt || place(known.query) !== place(location.search);
  /* Another place is one to come back from with the browser's own button; the first is where one comes from. */
  if (address !== (location.search || location.pathname)) {
    history[elsewhere && arrived && !returned ? "pushState" : "replaceState"](null, "", address);
  }
  [arrived, leapt, returned] = [true, false, false];
}

/* Where the server says why it refuses a value. */
const names = [...new Set([...controls].map((control) => control.name).filter(Boolean))];
for (const name of names) {
  const control = form.querySelector(`[name=${name}]`);
  control.setAttribute("aria-describedby", `refused-${name}`);
  control.closest("details > *, .views").after(element("p", "", { id: `refused-${name}`, className: "refused", role: "alert" }));
}

/* matplotlib's figure, as large as the page lets it be. Its script takes the focus once by itself, which is let pass, and
   then with each click, which is not to scroll the page. */
mpl.extensions = ["png", "svg", "pdf", "csv"];
const figure = new mpl.figure("figure", opened(), download, byId("figure"));
const { onopen } = figure.ws;
const canvas = figure.canvas_div;
figure._resize_canvas = () => {};
canvas.focus = () => { canvas.focus = () => HTMLElement.prototype.focus.call(canvas, { preventScroll: true }); };
figure.format_dropdown.setAttribute("aria-label", "Format of the download");
/* Arrow keys are for the figure, and not for who reads the page aloud. */
canvas.setAttribute("role", "application");
canvas.setAttribute("aria-roledescription", "figure");
canvas.setAttribute("aria-describedby", "keys");
canvas.before(figure.root.lastChild);

/* A connection for what the address asks for. Once it is lost, the page tries for another one. */
function opened() {
  const address = new URL(`socket${location.search}`, location.href);
  address.protocol = address.protocol.replace("http", "ws");
  if (dark) address.searchParams.set("prefers", "dark");
  const socket = new WebSocket(address);
  socket.addEventListener("open", () => {
    delete figure.send_message;
    figure.waiting = false;
    pause = 1;
    asked = 0;
    figure.resizeObserverInstance.unobserve(canvas);
    figure.resizeObserverInstance.observe(canvas);
  });
  socket.addEventListener("close", lost);
  return socket;
}

let pause = 1;
let next;
function lost() {
  figure.send_message = () => {};
  const again = known.port ? ` with --port ${known.port}` : "";
  const words = `The viewer has ended, or cannot be reached: trying again in ${pause} s. If it has ended, start it again${again}: this page then goes on.`;
  show.status({ words, failed: true });
  next = setTimeout(connect, 1000 * pause);
  pause = Math.min(2 * pause, 30);
}

function connect() {
  clearTimeout(next);
  const socket = opened();
  figure.ws = Object.assign(socket, { onopen, onmessage: figure._make_on_message_function(figure) });
}
/* Who comes back to the page does not wait. */
document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && figure.ws.readyState === WebSocket.CLOSED && connect());

function download(_, format) {
  const query = new URLSearchParams({ session: known.session });
  element("a", "", { href: `figure.${format}?${query}`, download: `${controls.view.value}.${format}` }).click();
}

/* What the server says, by name. */
const known = {};
let arrived = false;
let awaited = false;
/* Whether the next view is one to come back from, and whether it is one that the browser has come back to. */
let leapt = false;
let returned = false;
/* How often an address was sent on this connection. An answer to an earlier one changes the present address no more. */
let asked = 0;
document.addEventListener("selectionchange", () => awaited && show.findings(known.findings));
addEventListener("popstate", () => {
  returned = true;
  go(location.search);
});
function go(search) {
  figure.send_message("address", { query: search.slice(1), number: ++asked });
}
const show = {
  status({ words, failed }) {
    byId("status").textContent = words;
    byId("status").classList.toggle("refused", failed);
    entitle();
    describe();
  },
  /* Another viewer than the one that this page is of. */
  made: (made) => known.first === made || (known.first ? location.reload() : (known.first = made)),
  notices(lines) {
    byId("noticed").hidden = !lines.length;
    byId("notices").replaceChildren(...lines.map((line) => element("li", line)));
  },
  findings({ words, listed, more }) {
    /* What the user has selected, perhaps to copy it, stays until it is selected no longer. */
    const selected = getSelection();
    awaited = !selected.isCollapsed && selected.containsNode(byId("findings"), true);
    byId("found").hidden = !listed.length;
    /* Of several runs the table counts them; the list would take the room of the figure. It opens with a click. */
    if (!byId("found").dataset.chosen) byId("found").open = !listed.some(({ run }) => run);
    byId("found-words").textContent = `Findings: ${words}`;
    entitle();
    if (awaited) return;
    const before = [...byId("findings").children];
    const items = [];
    for (const finding of listed) {
      const name = `${finding.run} ${finding.title}`;
      items.push(before.find((item) => item.dataset.name === name && !items.includes(item)) ?? itemOf(name));
      fill(items.at(-1), finding);
    }
    if (more) {
      items.push(before.find(({ dataset }) => !dataset.name) ?? element("li", ""));
      set(items.at(-1), more);
    }
    /* Nodes that are moved would lose the focus. */
    if (items.length !== before.length || items.some((item, index) => item !== before[index])) byId("findings").replaceChildren(...items);
  },
  choices(choices) {
    for (const name of ["run", "rank", "statistic"]) {
      const select = controls[name];
      select.replaceChildren(...choices[name].map((value) => element("option", value || "all", { value })));
      select.closest("label").hidden = name !== "statistic" && choices[name].length < 3 + (name === "rank");
    }
    const boxes = choices.metrics.map(([name, value]) => {
      const label = element("label", name);
      label.prepend(element("input", "", { type: "checkbox", value }));
      return label;
    });
    byId("curves").hidden = !boxes.length;
    byId("curves").querySelectorAll("label").forEach((label) => label.remove());
    byId("curves").append(...boxes);
  },
  off(names) {
    for (const label of byId("curves").querySelectorAll("label")) label.firstChild.checked = !names.includes(label.textContent);
  },
  params({ names, all, matching, there }) {
    const more = all > names.length ? `; the first ${names.length} are` : "";
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
      /* Some are for an address alone. */
      if (!controls[name]) continue;
      const typing = controls[name] === document.activeElement && /text|search|range/.test(controls[name].type);
      if (!typing) controls[name].value = words[0];
    }
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
  query: settle,
  answered: settle,
};

/* A tab shows little of its title. */
function entitle() {
  const found = byId("found").hidden ? "" : byId("found-words").textContent.replace("Findings: ", "");
  document.title = [found, byId("status").textContent].filter(Boolean).join(" · ");
}

function itemOf(name) {
  const item = element("li", "");
  item.dataset.name = name;
  const details = element("details", "");
  const summary = element("summary", "");
  summary.append(element("b", ""), " ", element("a", "", { className: "step" }), " ", element("span", "", { className: "title" }), element("span", "", { className: "params" }));
  const text = element("p", "");
  text.append(element("b", ""), " ", element("span", ""));
  details.append(summary, text);
  item.append(details);
  return item;
}

/* Only what has changed, so that nothing is lost that the user has selected, opened or reached with keys. */
function set(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function fill(item, { number, severity, run, span, title, sentence, advice, step, params }) {
  const [kind, link] = item.querySelectorAll("summary > b, .step");
  const [said, tried] = item.querySelectorAll("p > *");
  set(kind, `${number} ${severity}`);
  kind.className = severity;
  set(link, span);
  lead(link, step);
  set(item.querySelector(".title"), run ? `${run}: ${title}` : title);
  set(said, sentence);
  set(tried, advice);
  const links = item.querySelector(".params");
  if (links.children.length !== params.length) links.replaceChildren(...params.flatMap(() => [" ", element("a", "")]));
  [...links.children].forEach((param, index) => {
    set(param, params[index][0]);
    lead(param, params[index][1]);
  });
}

function lead(link, query) {
  const address = query === null ? null : addressOf(query);
  if (address === null) link.removeAttribute("href");
  else if (link.getAttribute("href") !== address) link.setAttribute("href", address);
}

byId("found-words").addEventListener("click", () => (byId("found").dataset.chosen = "yes"));
byId("findings").addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  leapt = true;
  go(link.search);
});

function describe() {
  canvas.setAttribute("aria-label", `Figure, ${controls.view.value}: ${byId("status").textContent}`);
  for (const button of byId("params").querySelectorAll("button")) {
    button.setAttribute("aria-current", controls.view.value === "param" && button.value === controls.param.value);
  }
}

mpl.figure.prototype.handle_state = (_, { type, ...news }) => {
  Object.assign(known, news);
  for (const name of Object.keys(news)) show[name]?.(news[name]);
  if ("choices" in news) show.values(known.values), show.off(known.off);
};

/* What the user asks for. */
function ask() {
  figure.send_message("look", { query: new URLSearchParams(new FormData(form)).toString() });
}

let waiting;
function soon({ target }) {
  if (target.name === "smoothing") byId("smoothness").textContent = target.value;
  /* The curves that are switched off are one regular expression. */
  if (target.type === "checkbox") {
    controls.hide.value = [...byId("curves").querySelectorAll("[type=checkbox]:not(:checked)")].map((box) => box.value).join("|");
  }
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
