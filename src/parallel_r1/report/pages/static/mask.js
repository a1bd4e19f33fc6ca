// Who sees whom, and the position of every token: drawn from runs of tokens, never from n x n numbers.

class MaskView {
  constructor(onPoint) {
    this.picture = svg("svg", { class: "mask", role: "img" });
    this.note = el("p", { class: "quiet" });
    this.node = el("div", { class: "mask-box" }, el("div", { class: "mask-scroll" }, this.picture), this.note);
    this.picture.addEventListener("pointermove", (event) => {
      const cell = this.#under(event);
      onPoint(cell && cell.i, event, cell);
    });
    this.picture.addEventListener("pointerleave", () => onPoint(null));
  }

  show(answer) {
    this.answer = answer;
    const side = clamp(this.node.clientWidth - 60, 200, 460);
    this.side = side;
    this.scale = side / Math.max(1, answer.size);
    this.top = 84; // height of the picture of positions
    this.left = 34;
    const total = this.top + side + 26;
    this.picture.replaceChildren(
      this.#positions(),
      this.#squares(),
      this.#labels(),
      (this.row = svg("rect", { class: "cursor", visibility: "hidden" })),
      (this.column = svg("rect", { class: "cursor", visibility: "hidden" })),
    );
    this.picture.setAttribute("width", this.left + side + 12);
    this.picture.setAttribute("height", total);
    this.picture.setAttribute("viewBox", `0 0 ${this.left + side + 12} ${total}`);
    const share = Math.round((100 * this.#visiblePairs()) / Math.max(1, (answer.size * (answer.size + 1)) / 2));
    this.picture.setAttribute("aria-label", `Mask: ${share} % of all pairs of a token and one before it are seen.`);
    const sampler =
      {
        isolated: "Paths are blind to each other and share positions; after the join all of them are seen.",
        causal_join:
          "Paths are blind to each other while they are drawn; before the join their text is read again from left " +
          "to right, which this picture leaves out.",
        sequential: "Drawn from left to right: every token sees all before it, and has a position of its own.",
      }[answer.sampler] ?? "";
    this.note.textContent = `A row is a token, a filled square one that it sees: ${share} % of all pairs. ${sampler}`;
  }

  #visiblePairs() {
    const { count, address } = this.answer;
    let pairs = 0;
    count.forEach((own, a) => {
      pairs += (own * (own + 1)) / 2;
      for (let b = 0; b < a; b += 1) if (this.answer.related(address[a], address[b])) pairs += own * count[b];
    });
    return pairs;
  }

  #squares() {
    const { count, first, address } = this.answer;
    const parts = new Map();
    const add = (kind, d) => parts.set(kind, (parts.get(kind) ?? "") + d);
    const [s, left, top] = [this.scale, this.left, this.top];
    count.forEach((own, a) => {
      for (let b = 0; b <= a; b += 1) {
        if (!this.answer.related(address[a], address[b])) continue;
        const [x, y, w, h] = [left + first[b] * s, top + first[a] * s, count[b] * s, own * s];
        const shape = a === b ? `M${x} ${y}v${h}h${w}z` : `M${x} ${y}h${w}v${h}h${-w}z`;
        add(this.answer.kind(first[b]), shape);
      }
    });
    return svg(
      "g",
      {},
      svg("rect", { class: "mask-frame", x: left, y: top, width: this.side, height: this.side }),
      [...parts].map(([kind, d]) => svg("path", { class: `seen ${kind}`, d })),
    );
  }

  #positions() {
    const { count, first, at, criticalPath } = this.answer;
    const high = this.top - 24;
    const y = (position) => 8 + high * (1 - position / Math.max(1, criticalPath));
    const x = (token) => this.left + token * this.scale;
    const lines = count.map((own, span) =>
      svg("path", {
        class: `position ${this.answer.kind(first[span])}`,
        d: `M${x(first[span])} ${y(at[span])}L${x(first[span] + own)} ${y(at[span] + own)}`,
      }),
    );
    return svg(
      "g",
      {},
      svg("path", {
        class: "grid",
        d: `M${this.left} ${y(0)}h${this.side}M${this.left} ${y(criticalPath)}h${this.side}`,
      }),
      lines,
      svg("text", { x: this.left - 6, y: y(criticalPath) + 8, "text-anchor": "end" }, String(criticalPath)),
      svg("text", { x: this.left - 6, y: y(0) + 2, "text-anchor": "end" }, "0"),
    );
  }

  #labels() {
    const bottom = this.top + this.side + 16;
    return svg(
      "g",
      {},
      svg("text", { x: this.left, y: 2, dy: "0.2em", class: "title" }, ""),
      svg(
        "text",
        { x: this.left + this.side / 2, y: bottom, "text-anchor": "middle" },
        "token that is seen, in reading order",
      ),
      svg(
        "text",
        {
          x: 12,
          y: this.top + this.side / 2,
          "text-anchor": "middle",
          transform: `rotate(-90 12 ${this.top + this.side / 2})`,
        },
        "token",
      ),
      svg(
        "text",
        {
          x: 12,
          y: 8 + (this.top - 24) / 2,
          "text-anchor": "middle",
          transform: `rotate(-90 12 ${8 + (this.top - 24) / 2})`,
        },
        "position",
      ),
    );
  }

  #under(event) {
    const box = this.picture.getBoundingClientRect();
    const j = Math.floor((event.clientX - box.left - this.left) / this.scale);
    const i = Math.floor((event.clientY - box.top - this.top) / this.scale);
    if (j < 0 || j >= this.answer.size || i >= this.answer.size) return null;
    return i < 0 ? { i: j, j } : { i, j };
  }

  point(token) {
    if (!this.row) return;
    for (const bar of [this.row, this.column]) bar.setAttribute("visibility", token === null ? "hidden" : "visible");
    if (token === null) return;
    const [s, thick] = [this.scale, Math.max(1.5, this.scale)];
    const put = (bar, x, y, width, height) =>
      Object.entries({ x, y, width, height }).forEach(([name, value]) => bar.setAttribute(name, value));
    put(this.row, this.left, this.top + token * s, this.side, thick);
    put(this.column, this.left + token * s, 8, thick, this.top + this.side - 8);
  }
}
