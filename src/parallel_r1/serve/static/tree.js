// An answer on the page: trunk, forks with their paths side by side, summaries. Text of models is never read as HTML.

const HUES = 6;
const MOST_AT_ONCE = 20000;

/** An element with a class, and text if given. */
export function element(tag, name = "", text = "") {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
}

/** A branch: where its text goes, and how many tokens it has and began after. */
class Branch {
  constructor(box, start, count = null) {
    Object.assign(this, { box, start, count, tokens: 0, text: null, fork: null, ended: false, kind: "" });
  }
}

/** Draws deltas; what comes within one frame is put on the page together. */
export class Tree {
  /** @param {HTMLElement} box */
  constructor(box) {
    this.branches = new Map([["[]", new Branch(box, 0)]]);
    this.pending = new Map();
    this.frame = 0;
  }

  /** Take a delta of the stream: text of a branch, or an event there. */
  take(delta) {
    const key = JSON.stringify(delta.branch ?? []);
    const branch = this.branches.get(key) ?? this.open(delta.branch, key);
    if (delta.event === "fork") this.fork(branch, delta.paths);
    if (delta.event === "join") this.join(branch);
    if (delta.event === "end") this.end(branch, delta.cut);
    branch.tokens += delta.tokens ?? 0;
    if (delta.content) this.write(branch, delta.content, delta.in ?? "");
  }

  /** Tokens of the longest chain, and all, as far as they have come. */
  get figures() {
    const branches = [...this.branches.values()];
    return {
      critical: Math.max(...branches.map((branch) => branch.start + branch.tokens)),
      total: branches.reduce((sum, branch) => sum + branch.tokens, 0),
    };
  }

  fork(branch, paths) {
    branch.fork = element("div", "fork");
    branch.fork.dataset.paths = paths;
    branch.box.append(branch.fork);
    branch.text = null;
  }

  /** A path that is new: a column of its parent's fork. */
  open(address, key) {
    const parent = this.branches.get(JSON.stringify(address.slice(0, -1)));
    if (!parent.fork) this.fork(parent, 0);
    const path = address[address.length - 1][1];
    const box = element("section", `path hue-${path % HUES}`);
    const head = element("h4", "", `Path ${path + 1}`);
    const count = element("span");
    head.append(count);
    box.append(head);
    const columns = [...parent.fork.children];
    const after = columns.find((other) => Number(other.dataset.path) > path);
    box.dataset.path = path;
    parent.fork.insertBefore(box, after ?? null);
    const branch = new Branch(box, parent.start + parent.tokens, count);
    branch.parent = parent;
    this.branches.set(key, branch);
    return branch;
  }

  join(branch) {
    const paths = [...this.branches.values()].filter((other) => other.parent === branch);
    branch.start = Math.max(branch.start, ...paths.map((path) => path.start + path.tokens - branch.tokens));
    branch.fork = branch.text = null;
  }

  end(branch, cut) {
    branch.ended = true;
    if (cut) branch.box.title = "closed by the runtime";
    this.later(branch);
  }

  write(branch, text, kind) {
    if (!branch.text || branch.kind !== kind) {
      branch.text = element("p", kind === "summary" ? "text summary" : "text");
      branch.text.append("");
      branch.box.append(branch.text);
      branch.kind = kind;
    }
    const node = branch.text.lastChild;
    this.pending.set(node, (this.pending.get(node) ?? "") + text);
    this.later(branch);
  }

  later(branch) {
    (this.changed ??= new Set()).add(branch);
    this.frame ||= requestAnimationFrame(() => this.draw());
  }

  /** Put on the page what has come since the last frame. */
  draw() {
    this.frame = 0;
    for (const [node, text] of this.pending) {
      if (node.length > MOST_AT_ONCE) {
        node.parentNode.append(text);
      } else {
        node.appendData(text);
      }
    }
    this.pending.clear();
    for (const branch of this.changed ?? []) {
      if (branch.count) branch.count.textContent = `${branch.tokens}${branch.ended ? " ✓" : ""}`;
    }
    this.changed?.clear();
  }
}
