/* The table of runs: sorted and filtered here, as the address says; which runs are drawn is asked of the server, as every
   other option. */
"use strict";

{
  const place = byId("runs");
  const hidden = form.querySelector("input[name=runs]");
  const filter = element("input", "", { type: "search", placeholder: "filter: closed adam 0.01" });
  filter.setAttribute("aria-label", "Filter of runs");
  const all = element("input", "", { type: "checkbox" });
  all.setAttribute("aria-label", "Draw all of these runs, or none of them");
  const [head, body, table] = [element("tr", ""), element("tbody", ""), element("table", "")];
  const [thead, around] = [element("thead", ""), element("div", "")];
  thead.append(head);
  table.append(thead, body);
  around.append(table);
  place.append(filter, around);
  let runs = { columns: [], names: [], colours: [], most: 0 };
  /* The name of the column by which rows are sorted, and whether its largest come first. */
  let sorted;
  let typing;

  function recall() {
    const words = new URLSearchParams(location.search);
    sorted = { name: words.get("sort") ?? "", down: words.get("descending") === "true" };
    filter.value = words.get("filter") ?? "";
    keep();
  }

  const keep = () => Object.assign(own, { sort: sorted.name, descending: sorted.name && sorted.down, filter: filter.value.trim() });

  recall();
  addEventListener("popstate", () => {
    recall();
    draw();
  });

  const words = () => filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const row = (run) => runs.columns.map(({ cells }) => cells[run]).join(" ").toLowerCase();
  const visible = () => [...runs.names.keys()].filter((run) => words().every((word) => row(run).includes(word)));

  function compare(one, other) {
    const keys = runs.columns.find(({ name }) => name === sorted.name)?.sorts;
    if (!keys) return one - other;
    const [a, b] = [keys[one], keys[other]];
    /* What has no number comes last, whatever the order. */
    if (a === null || b === null) return (a === null) - (b === null) || one - other;
    return (sorted.down ? -1 : 1) * (a < b ? -1 : a > b ? 1 : 0) || one - other;
  }

  function draw() {
    const focused = [document.activeElement?.closest("#runs [data-key]")?.dataset.key, around.scrollTop, around.scrollLeft];
    const shown = visible().sort(compare);
    const drawn = shown.filter((run) => runs.colours[run]).length;
    place.hidden = runs.names.length < 2 || !runs.columns.length;
    place.querySelector("summary").textContent = `Runs: ${runs.names.length}, drawn ${runs.colours.filter(Boolean).length}`;
    [all.checked, all.indeterminate] = [drawn > 0 && drawn === shown.length, drawn > 0 && drawn < shown.length];
    const first = element("th", "");
    first.append(all);
    head.replaceChildren(first, ...runs.columns.map(({ name, right }) => {
      const cell = element("th", "", { className: right ? "number" : "" });
      const button = element("button", name, { type: "button" });
      button.dataset.key = `sort ${name}`;
      button.dataset.sort = name;
      cell.append(button);
      if (name === sorted.name) cell.setAttribute("aria-sort", sorted.down ? "descending" : "ascending");
      return cell;
    }));
    body.replaceChildren(...shown.map((run) => {
      const line = element("tr", "");
      const box = element("input", "", { type: "checkbox", checked: Boolean(runs.colours[run]) });
      box.setAttribute("aria-label", `Draw ${runs.names[run]}`);
      box.dataset.key = box.dataset.run = runs.names[run];
      const cell = element("td", "");
      cell.append(box);
      line.append(cell, ...runs.columns.map(({ cells, right }, index) => {
        const item = element("td", cells[run], { className: right ? "number" : "" });
        if (!index) {
          const chip = element("i", "");
          chip.style.background = runs.colours[run] ?? "transparent";
          item.prepend(chip);
          item.title = runs.names[run];
        }
        return item;
      }));
      return line;
    }));
    if (focused[0]) [...place.querySelectorAll("[data-key]")].find(({ dataset }) => dataset.key === focused[0])?.focus({ preventScroll: true });
    [around.scrollTop, around.scrollLeft] = focused.slice(1);
  }

  /* The form holds the chosen runs; none stands for all, or, of more than can be told apart, for those begun last. */
  function hold(chosen) {
    const usual = runs.names.slice(-runs.most);
    const names = chosen.length === usual.length && usual.every((name) => chosen.includes(name)) ? [] : chosen;
    form.querySelectorAll("input[name=runs]").forEach((input) => input !== hidden && input.remove());
    hidden.value = "";
    hidden.after(...names.map((value) => element("input", "", { type: "hidden", name: "runs", value })));
  }

  function choose(chosen) {
    hold(chosen);
    form.dispatchEvent(new Event("change"));
  }

  show.runs = (news) => {
    runs = news;
    const chosen = runs.names.filter((_, run) => runs.colours[run]);
    hold(chosen);
    draw();
  };
  filter.addEventListener("input", () => {
    keep();
    draw();
    /* Browsers allow a page few new addresses in a time. */
    clearTimeout(typing);
    typing = setTimeout(readdress, 300);
  });
  place.addEventListener("click", ({ target }) => {
    const name = target.dataset.sort;
    if (name === undefined) return;
    const right = runs.columns.find((column) => column.name === name).right;
    /* Numbers: the largest first; a second click turns the order around. */
    sorted = { name, down: sorted.name === name ? !sorted.down : right };
    keep();
    readdress();
    draw();
  });
  place.addEventListener("change", ({ target }) => {
    const before = runs.names.filter((_, run) => runs.colours[run]);
    if (target === all) {
      const these = visible().map((run) => runs.names[run]);
      choose(all.checked ? [...new Set([...before, ...these])] : before.filter((name) => !these.includes(name)));
    } else if (target.dataset.run !== undefined) {
      choose(target.checked ? [...before, target.dataset.run] : before.filter((name) => name !== target.dataset.run));
    }
  });
}
