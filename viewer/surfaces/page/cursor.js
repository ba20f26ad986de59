/* The cursor: at the pointer, or moved by the arrow keys. What stands there is asked of the server, one question at a time. */
"use strict";

const tip = element("div", "", { id: "tip", hidden: true });
/* Who does not see it is told by #said. */
tip.setAttribute("aria-hidden", "true");
byId("figure").append(tip);

let pending = false;
let wanted;
let pointer;
function point(place) {
  wanted = place;
  if (pending) return;
  pending = true;
  figure.send_message("point", wanted);
  wanted = undefined;
}

const nowhere = { x: -1, y: -1, click: false };
function leave() {
  pointer = undefined;
  read(null);
  point(nowhere);
}

function placeOf({ clientX, clientY }, click) {
  const box = canvas.getBoundingClientRect();
  return { x: (clientX - box.left) / box.width, y: (clientY - box.top) / box.height, click };
}

canvas.addEventListener("pointermove", (event) => {
  /* A button is down: something is dragged. */
  if (event.buttons) return leave();
  pointer = placeOf(event, false);
  point(pointer);
});
canvas.addEventListener("pointerleave", leave);
canvas.addEventListener("blur", () => pointer || leave());
canvas.addEventListener("click", (event) => figure.send_message("point", placeOf(event, true)));

const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape") leave();
  if (!(event.key in ways)) return;
  /* They are not matplotlib's keys for the views before and after. */
  event.stopImmediatePropagation();
  event.preventDefault();
  pointer = undefined;
  const [points, panels] = ways[event.key];
  figure.send_message("move", { points: points * (event.shiftKey ? 10 : 1), panels });
}, { capture: true });

mpl.figure.prototype.handle_reading = (_, { reading }) => {
  pending = false;
  if (wanted) point(wanted);
  read(reading);
};

function read(reading) {
  canvas.querySelectorAll(".line").forEach((line) => line.remove());
  tip.hidden = !reading;
  if (!reading) return;
  const { title, rows, own, more, lines, said, keys } = reading;
  for (const [left, top, height] of lines) {
    const line = element("div", "", { className: "line" });
    Object.assign(line.style, { left: `${100 * left}%`, top: `${100 * top}%`, height: `${100 * height}%` });
    canvas.append(line);
  }
  const table = element("table", "");
  table.append(...rows.map(({ name, words, colour, dash, named }, index) => {
    const row = element("tr", "", { className: named ? "named" : index < own ? "" : "elsewhere" });
    const mark = element("td", "");
    mark.append(element("i", ""));
    Object.assign(mark.firstChild.style, { borderTopColor: colour, borderTopStyle: dash });
    row.append(mark, element("td", name), element("td", words));
    return row;
  }));
  tip.replaceChildren(element("p", title), table, ...(more ? [element("p", more)] : []));
  const named = rows.find((row) => row.named);
  if (keys) byId("said").textContent = said;
  else if (named) byId("said").textContent = `${named.name} ${named.words}`;
  settle(lines);
}

/* Beside the pointer, or beside the line where keys have moved it, and within the figure. */
function settle(lines) {
  const [box, around] = [canvas.getBoundingClientRect(), byId("figure").getBoundingClientRect()];
  const { x, y } = pointer ?? { x: lines[0]?.[0] ?? 0, y: lines[0]?.[1] ?? 0 };
  const at = box.left - around.left + x * box.width;
  const beyond = at + 18 + tip.offsetWidth > around.width;
  const left = beyond ? Math.max(0, at - 18 - tip.offsetWidth) : at + 18;
  const top = Math.min(box.top - around.top + y * box.height + 12, around.height - tip.offsetHeight);
  Object.assign(tip.style, { left: `${left}px`, top: `${Math.max(0, top)}px` });
}
