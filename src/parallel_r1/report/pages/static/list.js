// The list of answers: filters, search, order; only the rows in view exist as elements.

const ROW = 50;
const FILTERS = {
  right: ["Right", (data, at) => data.correct[at] === 1],
  wrong: ["Wrong", (data, at) => data.correct[at] === 0],
  malformed: ["Malformed", (data, at) => data.defects[at] > 0],
  cut: ["Cut", (data, at) => data.cut[at] === 1],
};
const ORDERS = {
  file: ["in order", null],
  forks: ["most forks", (data, a, b) => data.forks[b] - data.forks[a] || data.paths[b] - data.paths[a]],
  long: ["longest", (data, a, b) => data.critical[b] - data.critical[a]],
  best: ["highest reward", (data, a, b) => (data.reward[b] ?? -Infinity) - (data.reward[a] ?? -Infinity)],
};

class AnswerList {
  constructor(data, onPick) {
    this.data = data;
    this.onPick = onPick;
    this.on = new Set();
    this.search = el("input", {
      type: "search",
      placeholder: "Search problems",
      "aria-label": "Search problems",
      oninput: () => this.filter(),
    });
    this.order = el(
      "select",
      { "aria-label": "Order", onchange: () => this.filter() },
      Object.entries(ORDERS)
        .filter(([name]) => name !== "best" || data.reward.some((one) => one !== null))
        .map(([name, [label]]) => el("option", { value: name }, label)),
    );
    this.chips = Object.entries(FILTERS).map(([name, [label]]) =>
      el(
        "button",
        {
          type: "button",
          class: `chip ${name}`,
          "aria-pressed": "false",
          "data-filter": name,
          onclick: () => this.#toggle(name),
        },
        label,
      ),
    );
    this.count = el("div", { class: "count", role: "status" });
    // By its place, not by its row: rows are replaced while the list scrolls, perhaps in the middle of a click.
    const pick = (event) => {
      const at = this.view[Math.floor((event.clientY - this.rows.getBoundingClientRect().top) / ROW)];
      if (at !== undefined) this.onPick(at);
    };
    this.rows = el("div", { class: "rows", onclick: pick });
    this.box = el(
      "div",
      {
        class: "list",
        role: "listbox",
        tabindex: "0",
        "aria-label": "Answers",
        onscroll: () => this.#render(),
        onkeydown: (event) => this.#key(event),
      },
      this.rows,
    );
    this.node = el(
      "aside",
      { class: "sidebar" },
      el(
        "div",
        { class: "filters" },
        this.search,
        el("div", { class: "chips", role: "group", "aria-label": "Filters" }, this.chips),
        el("div", { class: "order-row" }, this.count, this.order),
      ),
      this.box,
    );
    this.lower = data.problems.map(([prompt, answer, , id]) => `${prompt}\n${answer}\n${id}`.toLowerCase());
    new ResizeObserver(() => this.#render()).observe(this.box);
    this.filter();
  }

  #toggle(name) {
    if (this.on.has(name)) this.on.delete(name);
    else this.on.add(name);
    const opposite = { right: "wrong", wrong: "right" }[name];
    if (this.on.has(name)) this.on.delete(opposite);
    for (const chip of this.chips) chip.setAttribute("aria-pressed", String(this.on.has(chip.dataset.filter)));
    this.filter();
  }

  filter() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = this.lower.map((text) => words.every((word) => text.includes(word)));
    const tests = [...this.on].map((name) => FILTERS[name][1]);
    this.view = [];
    for (let at = 0; at < this.data.size; at += 1) {
      if (wanted[this.data.problem[at]] && tests.every((test) => test(this.data, at))) this.view.push(at);
    }
    const order = ORDERS[this.order.value][1];
    if (order) this.view.sort((a, b) => order(this.data, a, b));
    this.count.textContent =
      this.view.length === this.data.size
        ? plural(this.data.size, "answer")
        : `${number(this.view.length)} of ${plural(this.data.size, "answer")}`;
    this.rows.style.height = `${this.view.length * ROW}px`;
    this.box.scrollTop = 0;
    this.#render();
    this.onFilter?.();
  }

  #render() {
    const first = Math.max(0, Math.floor(this.box.scrollTop / ROW) - 4);
    const last = Math.min(this.view.length, Math.ceil((this.box.scrollTop + this.box.clientHeight) / ROW) + 4);
    const rows = [];
    for (let index = first; index < last; index += 1) rows.push(this.#row(index));
    this.rows.replaceChildren(...rows);
    if (!this.view.length) this.rows.replaceChildren(el("p", { class: "quiet none" }, "No answer matches."));
  }

  #row(index) {
    const at = this.view[index];
    const data = this.data;
    const right = data.correct[at] === 1;
    const figures = [
      data.step[at] === null ? null : `step ${data.step[at]}`,
      data.stages[data.stage[at]] || null,
      data.forks[at] ? plural(data.paths[at], "path") : "no fork",
      `${number(data.critical[at])} / ${number(data.total[at])}`,
    ];
    const marks = [
      data.defects[at] ? el("span", { class: "mark" }, "malformed") : null,
      data.cut[at] ? el("span", { class: "mark" }, "cut") : null,
    ];
    return el(
      "div",
      {
        class: "row",
        role: "option",
        id: `${data.name}-row-${at}`,
        "aria-selected": String(at === this.selected),
        "aria-setsize": this.view.length,
        "aria-posinset": index + 1,
        style: `transform: translateY(${index * ROW}px)`,
      },
      el(
        "div",
        { class: "row-prompt" },
        el("span", { class: right ? "right" : "wrong", title: right ? "right" : "wrong" }, right ? "✓ " : "✗ "),
        data.prompt(at).trim(),
      ),
      el("div", { class: "row-figures" }, el("span", {}, figures.filter(Boolean).join(" · ")), marks),
    );
  }

  /** Mark an answer as selected and, where it is in the list, scroll to it. */
  select(at) {
    this.selected = at;
    const index = this.view.indexOf(at);
    if (index >= 0) {
      const top = index * ROW;
      if (top < this.box.scrollTop) this.box.scrollTop = top;
      else if (top + ROW > this.box.scrollTop + this.box.clientHeight)
        this.box.scrollTop = top + ROW - this.box.clientHeight;
    }
    this.#render();
    const shown = this.rows.querySelector('[aria-selected="true"]');
    if (shown) this.box.setAttribute("aria-activedescendant", shown.id);
    else this.box.removeAttribute("aria-activedescendant");
  }

  /** Select the answer so many rows further down. */
  move(by) {
    if (!this.view.length) return;
    const index = this.view.indexOf(this.selected);
    this.onPick(this.view[index < 0 ? 0 : clamp(index + by, 0, this.view.length - 1)]);
  }

  #key(event) {
    const page = Math.max(1, Math.floor(this.box.clientHeight / ROW) - 1);
    const by = {
      ArrowDown: 1,
      ArrowUp: -1,
      PageDown: page,
      PageUp: -page,
      Home: -this.view.length,
      End: this.view.length,
    }[event.key];
    if (by === undefined) return;
    event.preventDefault();
    this.move(by);
  }
}
