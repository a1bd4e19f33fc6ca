// An answer as a fork-join picture in token time: lanes, tokens, connections and the critical path.

const LANE = 21; // height of a lane in pixels
const TOKEN = 11; // height of a token
const GUTTER = 46; // space on the left for the marks of paths

/** The lanes of an answer: the trunk, and every path with its forks, with the height that each needs. */
function lanes(answer) {
  const nodes = new Map();
  const nodeAt = (address) => {
    const key = JSON.stringify(address);
    if (!nodes.has(key)) {
      const node = { address, forks: new Map(), spans: [], height: 1, y: 0, index: -1 };
      nodes.set(key, node);
      if (address.length) {
        const [fork, path] = address.at(-1);
        const outer = nodeAt(address.slice(0, -1));
        if (!outer.forks.has(fork)) outer.forks.set(fork, new Map());
        outer.forks.get(fork).set(path, node);
      }
    }
    return nodes.get(key);
  };
  const trunk = nodeAt([]);
  answer.addresses.forEach((address, index) => (nodeAt(address).index = index));
  answer.address.forEach((address, span) => nodeAt(answer.addresses[address]).spans.push(span));
  const paths = (node) => [...node.forks.values()].map((fork) => [...fork.values()]);
  const measure = (node) => {
    for (const fork of paths(node)) {
      fork.forEach(measure);
      node.height = Math.max(
        node.height,
        fork.reduce((sum, path) => sum + path.height, 0),
      );
    }
  };
  const place = (node, y) => {
    node.y = y;
    for (const fork of paths(node)) {
      let top = y - fork.reduce((sum, path) => sum + path.height, 0) / 2;
      for (const path of fork) {
        place(path, top + path.height / 2);
        top += path.height;
      }
    }
  };
  measure(trunk);
  place(trunk, trunk.height / 2);
  return { trunk, all: [...nodes.values()] };
}

const stopOf = (answer, span) => answer.at[span] + answer.count[span];

/** Where a lane begins and ends in token time, its nested forks included. */
function extent(answer, node) {
  const inner = [...node.forks.values()].flatMap((fork) => [...fork.values()]).map((path) => extent(answer, path));
  return {
    start: Math.min(...node.spans.map((span) => answer.at[span]), ...inner.map((one) => one.start)),
    stop: Math.max(...node.spans.map((span) => stopOf(answer, span)), ...inner.map((one) => one.stop)),
  };
}

class Timeline {
  /** @param {(token: number | null, event?: Event) => void} onPoint called with the token under the pointer. */
  constructor(onPoint, onPick) {
    this.onPoint = onPoint;
    this.zoom = 1; // 1 shows the whole answer
    this.picture = svg("svg", { class: "timeline", role: "img" });
    this.node = el(
      "div",
      {
        class: "timeline-scroll",
        tabindex: "0",
        role: "group",
        "aria-label": "Timeline. Arrow keys move from token to token.",
      },
      this.picture,
    );
    this.picture.addEventListener("pointermove", (event) => onPoint(this.#under(event), event));
    this.picture.addEventListener("pointerleave", () => onPoint(null));
    this.picture.addEventListener("click", (event) => onPick(this.#under(event)));
  }

  show(answer, tinted) {
    this.answer = answer;
    const { trunk, all } = lanes(answer);
    this.lanes = all;
    this.laneOf = [];
    for (const node of all) for (const span of node.spans) this.laneOf[span] = node;
    const fit = Math.max(200, this.node.clientWidth - GUTTER - 26) / Math.max(1, answer.criticalPath);
    this.canZoom = fit < 6;
    this.scale = Math.min(17, fit * (this.canZoom ? this.zoom : 1)); // pixels of a token
    this.half = clamp(this.scale, 4, 9); // half the width of a bend
    const width = Math.ceil(GUTTER + this.scale * answer.criticalPath + 24);
    const height = Math.ceil(trunk.height * LANE + 40);
    this.picture.replaceChildren(
      this.#axis(width, trunk.height * LANE + 12),
      this.#connections(trunk),
      this.#tokens(tinted),
      this.#critical(),
      this.#marks(),
      (this.cursor = svg("rect", { class: "cursor", rx: 3, visibility: "hidden" })),
    );
    this.picture.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.picture.setAttribute("width", width);
    this.picture.setAttribute("height", height);
    this.picture.setAttribute("aria-label", describe(answer));
  }

  /** Zoom in or out by a factor, around the token that is pointed at or the middle. */
  zoomBy(factor, token) {
    const { scrollLeft, clientWidth } = this.node;
    const middle = token === null ? (scrollLeft + clientWidth / 2 - GUTTER) / this.scale : this.answer.position[token];
    this.zoom = clamp(this.zoom * factor, 1, 256);
    return () => {
      this.node.scrollLeft = this.x(middle) - clientWidth / 2;
    };
  }

  x(position) {
    return GUTTER + this.scale * position;
  }

  y(node) {
    return 6 + LANE * node.y;
  }

  #axis(width, y) {
    const count = this.answer.criticalPath;
    const step =
      [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000].find((one) => one * this.scale >= 48) ?? 20000;
    const ticks = Array.from({ length: Math.floor(count / step) + 1 }, (_, index) => index * step);
    const last = ticks.length > 1 && (count - ticks.at(-1)) * this.scale < 30 ? ticks.slice(0, -1) : ticks;
    return svg(
      "g",
      { class: "axis" },
      last.map((tick) => svg("path", { d: `M${this.x(tick)} 2V${y}`, class: "grid" })),
      svg("path", { d: `M${this.x(count)} 2V${y}`, class: "end" }),
      last.map((tick) => svg("text", { x: this.x(tick), y: y + 14, "text-anchor": "middle" }, String(tick))),
      svg("text", { x: this.x(count), y: y + 14, "text-anchor": "middle", class: "total" }, number(count)),
    );
  }

  /** An S from one lane to another, around the border between two tokens. */
  #bend(at, from, to) {
    const x = this.x(at);
    return `M${x - this.half} ${from}C${x} ${from} ${x} ${to} ${x + this.half} ${to}`;
  }

  #connections(trunk) {
    const [lines, waits] = [[], []];
    const visit = (node) => {
      for (const fork of node.forks.values()) {
        const inner = [...fork.values()].map((path) => ({ path, ...extent(this.answer, path) }));
        const opens = Math.min(...inner.map((one) => one.start));
        const ends = Math.max(...inner.map((one) => one.stop));
        const later = node.spans.map((span) => this.answer.at[span]).filter((at) => at >= ends);
        for (const { path, stop, start } of inner) {
          lines.push(this.#bend(opens, this.y(node), this.y(path)));
          if (start > opens) waits.push(`M${this.x(opens)} ${this.y(path)}H${this.x(start)}`);
          if (later.length) {
            if (stop < ends) waits.push(`M${this.x(stop)} ${this.y(path)}H${this.x(ends) - 3}`);
            lines.push(this.#bend(ends, this.y(path), this.y(node)));
          }
          visit(path);
        }
      }
    };
    visit(trunk);
    return svg(
      "g",
      {},
      svg("path", { d: lines.join(""), class: "wire" }),
      svg("path", { d: waits.join(""), class: "wait" }),
    );
  }

  #tokens(tinted) {
    const parts = new Map();
    const gap = this.scale >= 5 ? 1 : this.scale >= 3.5 ? 0.5 : 0;
    for (let token = 0; token < this.answer.size; token += 1) {
      const given = !this.answer.sampled(token);
      const strength = given ? 0 : tinted ? level(this.answer.surprise[token]) : 3;
      const aside = this.answer.aside(token) ? " aside" : "";
      const name = `token ${this.answer.kind(token)} ${given ? "given" : `level-${strength}`}${aside}`;
      const inset = given && this.scale >= 3 ? 0.6 : 0;
      const x = this.x(this.answer.position[token]) + gap / 2 + inset;
      const y = this.y(this.laneOf[this.answer.span[token]]) - TOKEN / 2 + inset;
      const [w, h] = [Math.max(0.6, this.scale - gap - 2 * inset), TOKEN - 2 * inset];
      const box = `M${x.toFixed(2)} ${y}h${w.toFixed(2)}v${h}h${(-w).toFixed(2)}z`;
      parts.set(name, (parts.get(name) ?? "") + box);
    }
    const base = svg("path", { class: "token-base", d: [...parts.values()].join("") }); // hides the wires below
    return svg(
      "g",
      {},
      base,
      [...parts].map(([name, d]) => svg("path", { class: name, d })),
    );
  }

  /** The critical path as one line through the lanes. */
  #critical() {
    let d = "";
    let before = null;
    for (const span of this.answer.critical) {
      const node = this.laneOf[span];
      const [start, stop] = [this.x(this.answer.at[span]), this.x(stopOf(this.answer, span))];
      const y = this.y(node);
      if (before === null) d += `M${start} ${y}`;
      else if (before !== node)
        d += `H${start - this.half}C${start} ${this.y(before)} ${start} ${y} ${start + this.half} ${y}`;
      d += `H${Math.max(start + this.half, stop - this.half)}`;
      before = node;
    }
    if (before !== null) d += `H${this.x(this.answer.criticalPath)}`;
    return svg("g", {}, svg("path", { d, class: "critical-halo" }), svg("path", { d, class: "critical" }));
  }

  #marks() {
    return svg(
      "g",
      { class: "marks" },
      this.lanes
        .filter((node) => node.address.length && node.spans.length)
        .map((node) => {
          const verdict = this.answer.verdicts[node.index] ?? "";
          const text = `${node.address.at(-1)[1] + 1}${verdict && ` ${VERDICTS[verdict][0]}`}`;
          const x = this.x(this.answer.at[node.spans[0]]) - this.half - 4;
          const outer = this.lanes.find((other) => String(other.address) === String(node.address.slice(0, -1)));
          const covered = Math.abs(this.y(node) - this.y(outer)) < TOKEN / 2 + 3; // by the tokens before the fork
          return svg(
            "text",
            { x, y: this.y(node) + (covered ? -TOKEN / 2 - 3 : 4), "text-anchor": "end", class: verdict },
            text,
          );
        }),
    );
  }

  #under(event) {
    const box = this.picture.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    const position = Math.floor((x - GUTTER) / this.scale);
    let best = null;
    for (const node of this.lanes) {
      if (Math.abs(this.y(node) - y) > LANE / 2) continue;
      const span = node.spans.find((one) => this.answer.at[one] <= position && position < stopOf(this.answer, one));
      if (span !== undefined) best = this.answer.first[span] + position - this.answer.at[span];
    }
    return best;
  }

  /** Where a token is drawn, in the coordinates of the window. */
  place(token) {
    const box = this.picture.getBoundingClientRect();
    const x = box.left + this.x(this.answer.position[token]);
    const y = box.top + this.y(this.laneOf[this.answer.span[token]]) - TOKEN / 2;
    return { left: x, right: x + this.scale, top: y, bottom: y + TOKEN };
  }

  point(token, follow) {
    if (token === null) return this.cursor.setAttribute("visibility", "hidden");
    const span = this.answer.span[token];
    const whole = !this.answer.ownTexts;
    const from = whole ? this.answer.at[span] : this.answer.position[token];
    const x = this.x(from) - 1;
    this.cursor.setAttribute("visibility", "visible");
    this.cursor.setAttribute("x", x);
    this.cursor.setAttribute("y", this.y(this.laneOf[span]) - TOKEN / 2 - 2);
    this.cursor.setAttribute("width", Math.max(3, this.scale * (whole ? this.answer.count[span] : 1) + 2));
    this.cursor.setAttribute("height", TOKEN + 4);
    if (!follow) return undefined;
    const scroll = this.node;
    if (x < scroll.scrollLeft + 20 || x > scroll.scrollLeft + scroll.clientWidth - 40)
      scroll.scrollLeft = x - scroll.clientWidth / 2;
    return undefined;
  }

  /** The token beside another one: along the answer, or in the lane above or below at the same position. */
  beside(token, key) {
    if (key === "ArrowLeft") return Math.max(0, token - 1);
    if (key === "ArrowRight") return Math.min(this.answer.size - 1, token + 1);
    const [own, position] = [this.laneOf[this.answer.span[token]], this.answer.position[token]];
    const side = key === "ArrowDown" ? 1 : -1;
    let best = token;
    let distance = Infinity;
    this.answer.position.forEach((other, index) => {
      const lane = this.laneOf[this.answer.span[index]];
      const away = side * (lane.y - own.y);
      if (away > 0.01 && away * 1000 + Math.abs(other - position) < distance) {
        distance = away * 1000 + Math.abs(other - position);
        best = index;
      }
    });
    return best;
  }
}

/** An answer in one sentence, for those who do not see the picture. */
function describe(answer) {
  const paths = answer.addresses.filter((address) => address.length).length;
  const forks = new Set(answer.addresses.flat().map(([fork]) => fork)).size;
  const shape = forks ? `${plural(forks, "fork")} with ${plural(paths, "path")}` : "no fork";
  return `Answer with ${shape}: ${plural(answer.size, "token")}, critical path ${number(answer.criticalPath)} tokens.`;
}
