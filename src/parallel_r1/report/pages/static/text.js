// An answer as text: the trunk as it reads, the paths of a fork side by side. Elements with data-token are linked with
// the timeline.

class TextView {
  constructor(onPoint, onPick) {
    this.node = el("div", {
      class: "answer-text",
      tabindex: "0",
      role: "group",
      "aria-label": "Text of the answer. Arrow keys move from token to token.",
    });
    const tokenOf = (event) => {
      const target = event.target.closest?.("[data-token]");
      return target ? Number(target.dataset.token) : null;
    };
    this.node.addEventListener("pointermove", (event) => onPoint(tokenOf(event), event));
    this.node.addEventListener("pointerleave", () => onPoint(null));
    this.node.addEventListener("click", (event) => onPick(tokenOf(event)));
  }

  show(answer, tinted) {
    this.answer = answer;
    this.elements = [];
    this.boxes = new Map([["[]", el("div", { class: "trunk-text" })]]);
    this.grids = new Map();
    answer.count.forEach((count, span) => {
      const box = this.#box(answer.addresses[answer.address[span]]);
      if (answer.ownTexts) this.#tokens(box, span, tinted);
      else this.#pieces(box, span, tinted);
    });
    this.node.classList.toggle("tinted", tinted);
    this.node.replaceChildren(this.boxes.get("[]"));
  }

  /** The element of the trunk or of a path; made where it opens. */
  #box(address) {
    const key = JSON.stringify(address);
    if (this.boxes.has(key)) return this.boxes.get(key);
    const outer = this.#box(address.slice(0, -1));
    const [fork, path] = address.at(-1);
    if (!this.grids.has(fork)) {
      this.grids.set(fork, el("div", { class: "fork-text" }));
      outer.append(this.grids.get(fork));
    }
    const at = this.answer.addresses.findIndex((other) => JSON.stringify(other) === key);
    const verdict = this.answer.verdicts[at];
    const name = el(
      "div",
      { class: "path-name" },
      `path ${path + 1}`,
      verdict ? ` ${VERDICTS[verdict].join(" ")}` : "",
    );
    const box = el("div", { class: `path-text ${verdict ?? "path"}` }, name);
    this.grids.get(fork).append(box);
    this.boxes.set(key, box);
    return box;
  }

  #tokens(box, span, tinted) {
    const first = this.answer.first[span];
    for (let token = first; token < first + this.answer.count[span]; token += 1) {
      const text = this.answer.textOf(token);
      box.append((this.elements[token] = this.#element(token, text, this.answer.surprise[token], tinted)));
    }
  }

  /** Without a tokenizer: the pieces of a span, which are pointed at together. */
  #pieces(box, span, tinted) {
    const first = this.answer.first[span];
    const mean = this.answer.meanSurprise(span);
    const pieces = this.answer.pieces[span];
    let at = 0;
    const group = el("span", { class: "span" });
    for (let i = 0; i < pieces.length; i += 2) {
      const node = this.#element(first, this.answer.text[span].slice(at, at + pieces[i]), mean, tinted);
      node.className = node.className.replace(/ tag| summary| plan/g, "") + roleClass(pieces[i + 1]);
      group.append(node);
      at += pieces[i];
    }
    this.elements[first] = group;
    box.append(group);
  }

  #element(token, text, surprise, tinted) {
    const given = this.answer.sampled(token) ? "" : " given";
    const aside = this.answer.aside(token) ? " aside" : "";
    const strength = given || !tinted ? "" : ` level-${level(surprise)}`;
    const name = `t ${this.answer.kind(token)}${roleClass(this.answer.role[token])}${given}${aside}${strength}`;
    return el("span", { class: name, "data-token": token }, text);
  }

  #target(token) {
    return this.elements[this.answer.ownTexts ? token : this.answer.first[this.answer.span[token]]];
  }

  point(token, follow) {
    this.pointed?.classList.remove("pointed");
    if (token === null) return;
    this.pointed = this.#target(token);
    this.pointed?.classList.add("pointed");
    if (follow) this.pointed?.scrollIntoView({ block: "nearest" });
  }

  place(token) {
    return this.#target(token)?.getBoundingClientRect();
  }
}

const roleClass = (role) =>
  (role & ROLE.tag ? " tag" : "") + (role & ROLE.summary ? " summary" : role & ROLE.plan ? " plan" : "");
