// Puts the parts together: list, head, step slider, timeline, text, mask; and what pointer and keys do.

const HELP = [
  ["j / k", "next, previous answer"],
  ["/", "search problems"],
  ["[ / ]", "earlier, later step"],
  ["+ / −", "zoom into a long timeline"],
  ["t", "tint by surprise"],
  ["m", "mask and positions"],
  ["← → ↑ ↓", "on timeline or text: token by token, lane by lane"],
  ["Esc", "close, or leave the search"],
  ["?", "this help"],
];

const NOTE =
  "No tokenizer was given, so text is shown per span, with the span's mean surprise; the colours of single tokens in " +
  "a span are placed by their share of its text. --model FOLDER adds every token's own text.";

class Viewer {
  constructor(data, mount) {
    this.data = data;
    this.tinted = true;
    this.token = null;
    this.list = new AnswerList(data, (at) => this.open(at));
    const point = (token, event, cell) => this.point(token, event, cell);
    this.timeline = new Timeline(point, (token) => this.pick(token));
    this.text = new TextView(point, (token) => this.pick(token));
    this.mask = new MaskView(point);
    this.head = el("header", { class: "answer-head" });
    this.steps = new Steps(data, (at) => this.open(at));
    this.defects = el("ul", { class: "defects" });
    this.tip = el("div", { class: "tip", role: "status", hidden: true });
    this.tint = el(
      "button",
      { type: "button", class: "chip", "aria-pressed": "true", onclick: () => this.toggleTint() },
      "Tint by surprise",
    );
    this.maskButton = el(
      "button",
      { type: "button", class: "chip", "aria-expanded": "false", onclick: () => this.toggleMask() },
      "Mask and positions",
    );
    this.zoomButtons = ["−", "+"].map((sign, index) =>
      el(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-label": index ? "Zoom in" : "Zoom out",
          onclick: () => this.zoom(index ? 2 : 0.5),
        },
        sign,
      ),
    );
    this.maskPanel = el(
      "section",
      { class: "mask-panel", hidden: true, "aria-label": "Mask and positions" },
      this.mask.node,
    );
    this.help = this.#helpDialog();
    const helpButton = el(
      "button",
      { type: "button", class: "chip", "aria-label": "Help: keys", onclick: () => this.help.showModal() },
      "?",
    );
    const note = data.ownTexts ? null : el("p", { class: "note" }, NOTE);
    this.pane = el(
      "div",
      { class: "pane" },
      this.head,
      this.steps.node,
      el("div", { class: "tools" }, this.tint, this.maskButton, this.zoomButtons, helpButton),
      note,
      this.timeline.node,
      this.#legend(),
      this.defects,
      this.maskPanel,
      this.text.node,
    );
    this.node = el("div", { class: "viewer" }, this.list.node, this.pane, this.tip, this.help);
    mount.replaceChildren(this.node);
    this.#keys();
    new ResizeObserver(() => this.#draw()).observe(this.pane);
    if (data.size) this.open(data.opensAt);
    else this.pane.replaceChildren(el("p", { class: "quiet" }, "There is no answer to show."));
  }

  async open(at) {
    this.at = at;
    this.list.select(at);
    this.steps.show(at);
    const answer = await this.data.answer(at);
    if (this.at !== at) return; // another one was opened meanwhile
    this.answer = answer;
    this.token = null;
    this.timeline.zoom = 1;
    this.#head(at);
    this.#draw(true);
    this.point(null);
    this.node.dataset.shown = at;
  }

  #draw(again = false) {
    const width = this.pane.clientWidth;
    if (!this.answer || (!again && width === this.width)) return;
    this.width = width;
    this.timeline.show(this.answer, this.tinted);
    for (const button of this.zoomButtons) button.hidden = !this.timeline.canZoom;
    if (again) this.text.show(this.answer, this.tinted);
    if (!this.maskPanel.hidden) this.mask.show(this.answer);
  }

  #head(at) {
    const { data, answer } = this;
    const right = data.correct[at] === 1;
    const [prompt, reference, task] = data.problems[data.problem[at]];
    const facts = [
      data.stages[data.stage[at]],
      data.step[at] === null ? "" : `step ${data.step[at]}`,
      task,
      `reference ${reference}`,
      { length: "cut by the budget", error: "ended by an error", cancelled: "cancelled" }[answer.finish] ?? "",
      answer.sampler === "isolated" ? "" : answer.sampler.replace("_", " "),
      answer.schema ?? "",
    ];
    const terms = Object.entries(answer.terms)
      .map(([name, value]) => `${name} ${signed(value)}`)
      .join(", ");
    const reward =
      data.reward[at] === null
        ? null
        : el("span", { class: "fact" }, `reward ${signed(data.reward[at])}${terms.includes(",") ? ` (${terms})` : ""}`);
    const figure = (value, words) => el("div", { class: "figure" }, el("b", {}, value), " ", words);
    this.head.replaceChildren(
      el("div", { class: "prompt" }, prompt.trim()),
      el(
        "div",
        { class: "facts" },
        el("span", { class: `verdict ${right ? "right" : "wrong"}` }, right ? "✓ right" : "✗ wrong"),
        facts.filter(Boolean).map((fact) => el("span", { class: "fact" }, fact)),
        reward,
      ),
      el(
        "div",
        { class: "figures" },
        figure(number(answer.criticalPath), "tokens one after the other"),
        figure(number(answer.size), "tokens in all"),
        figure((answer.size / Math.max(1, answer.criticalPath)).toFixed(1), "tokens at a time"),
      ),
    );
    this.defects.replaceChildren(
      ...answer.defects.map(([kind, token, message]) =>
        el(
          "li",
          {},
          el(
            "button",
            { type: "button", onclick: () => this.pick(Math.min(token, answer.size - 1)) },
            `${kind} at token ${token}`,
          ),
          ` ${message}`,
        ),
      ),
    );
  }

  #legend() {
    const item = (name, words) => el("span", { class: "key" }, el("i", { class: `swatch ${name}` }), words);
    return el(
      "div",
      { class: "legend" },
      item("trunk", "trunk"),
      item("right", "right path ✓"),
      item("wrong", "wrong path ✗"),
      item("failed", "path without an answer –"),
      item("path", "path, not judged"),
      item("summary", "summary"),
      item("plan", "plan"),
      item("given", "given by the runtime"),
      item("line", "critical path"),
      item("waiting", "waits for the longest path"),
      el(
        "span",
        { class: "key scale" },
        "surprise, bits: ",
        ["<0.05", "<0.5", "<1.5", "<3", "more"].map((words, index) => [
          el("i", { class: `swatch trunk level-${index}` }),
          words,
        ]),
      ),
    );
  }

  /** Point at a token: in the timeline, the text, the mask and the tip beside it. */
  point(token, event, cell) {
    if (token === null && this.token !== null && !event) token = this.token; // back to the one that was picked
    this.timeline.point(token);
    this.text.point(token);
    this.mask.point(token);
    if (token === null) this.tip.hidden = true;
    else this.#tip(token, event, cell);
  }

  pick(token) {
    this.token = token;
    this.point(token);
    if (token === null) return;
    this.timeline.point(token, true);
    this.text.point(token, false);
  }

  #tip(token, event, cell) {
    this.tip.replaceChildren(...tipLines(this.answer, token, cell));
    this.tip.hidden = false;
    const onMask = event?.currentTarget === this.mask.picture;
    const onText = event?.currentTarget === this.text.node || this.keysOnText;
    const box = onMask
      ? { left: event.clientX, top: event.clientY, bottom: event.clientY + 8 }
      : (onText ? this.text : this.timeline).place(token);
    if (box) placeTip(this.tip, box);
  }

  zoom(factor) {
    if (!this.answer || !this.timeline.canZoom) return;
    const back = this.timeline.zoomBy(factor, this.token);
    this.timeline.show(this.answer, this.tinted);
    back();
    this.point(null);
  }

  toggleTint() {
    this.tinted = !this.tinted;
    this.tint.setAttribute("aria-pressed", String(this.tinted));
    this.#draw(true);
  }

  toggleMask() {
    this.maskPanel.hidden = !this.maskPanel.hidden;
    this.maskButton.setAttribute("aria-expanded", String(!this.maskPanel.hidden));
    if (!this.maskPanel.hidden && this.answer) this.mask.show(this.answer);
  }

  #helpDialog() {
    const close = el("button", { type: "button", class: "chip", onclick: () => this.help.close() }, "Close");
    return el(
      "dialog",
      { class: "help", "aria-label": "Keys" },
      el("h3", {}, "Keys"),
      el(
        "dl",
        {},
        HELP.map(([key, words]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, words)]),
      ),
      close,
    );
  }

  #keys() {
    for (const part of [this.timeline, this.text]) {
      part.node.addEventListener("keydown", (event) => {
        if (!event.key.startsWith("Arrow") || !this.answer?.size || event.ctrlKey || event.metaKey || event.altKey)
          return;
        event.preventDefault();
        this.keysOnText = part === this.text;
        this.pick(this.token === null ? 0 : this.timeline.beside(this.token, event.key));
        if (this.keysOnText) this.text.point(this.token, true);
      });
      part.node.addEventListener("blur", () => {
        this.keysOnText = false;
      });
    }
    document.addEventListener("keydown", (event) => {
      const typing = event.target.matches?.("input, select, textarea");
      if (event.key === "Escape") {
        if (event.target === this.list.search) this.list.box.focus();
        this.pick(null);
        this.tip.hidden = true;
        return;
      }
      if ((typing && event.target.type !== "range") || event.ctrlKey || event.metaKey || event.altKey || this.help.open)
        return;
      const act = {
        j: () => this.list.move(1),
        k: () => this.list.move(-1),
        "/": () => this.list.search.focus(),
        "?": () => this.help.showModal(),
        t: () => this.toggleTint(),
        m: () => this.toggleMask(),
        "+": () => this.zoom(2),
        "=": () => this.zoom(2),
        "-": () => this.zoom(0.5),
        "[": () => this.steps.move(-1),
        "]": () => this.steps.move(1),
      }[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
  }
}

const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

async function start() {
  for (const mount of document.querySelectorAll("[data-viewer]")) {
    const viewer = new Viewer(await Data.read(mount.dataset.viewer), mount);
    mount.viewer = viewer;
  }
}

start();
