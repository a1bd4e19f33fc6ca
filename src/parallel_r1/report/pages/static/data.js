// Reads the packed answers of the page: see report/pack.py for the format.

async function unpack(id) {
  const bytes = Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}

class Data {
  constructor(name, index) {
    Object.assign(this, index.columns);
    this.name = name;
    this.problems = index.problems; // prompt, reference, task, id, number of all that are one problem in other words
    this.stages = index.stages;
    this.blockSize = index.block;
    this.ownTexts = index.tokens;
    this.opensAt = index.open;
    this.size = this.problem.length;
    this.blocks = new Map(); // the blocks that were read last, newest at the end
  }

  static async read(name) {
    return new Data(name, await unpack(`${name}-index`));
  }

  prompt(at) {
    return this.problems[this.problem[at]][0];
  }

  async answer(at) {
    const block = Math.floor(at / this.blockSize);
    const rows = this.blocks.get(block) ?? unpack(`${this.name}-${block}`);
    this.blocks.delete(block);
    this.blocks.set(block, rows);
    if (this.blocks.size > 8) this.blocks.delete(this.blocks.keys().next().value);
    return new Answer((await rows)[at % this.blockSize], this.ownTexts);
  }
}

const ROLE = { tag: 1, summary: 2, plan: 4 }; // bits of a piece's role

/** One answer, token by token. Arrays have an entry per token in reading order. */
class Answer {
  constructor(row, ownTexts) {
    Object.assign(this, row);
    this.ownTexts = ownTexts;
    this.size = row.count.reduce((sum, count) => sum + count, 0);
    this.span = new Uint32Array(this.size);
    this.position = new Uint32Array(this.size);
    this.surprise = new Float64Array(this.size).fill(NaN);
    this.role = new Uint8Array(this.size);
    this.start = new Uint32Array(this.size); // where its text begins in the text of its span
    this.stop = new Uint32Array(this.size);
    this.first = []; // by span, its first token
    let token = 0;
    row.count.forEach((count, span) => {
      this.first.push(token);
      this.#cut(span, token);
      for (let i = 0; i < count; i += 1, token += 1) {
        this.span[token] = span;
        this.position[token] = row.at[span] + i;
        const bits = row.bits[span]?.[i] ?? -1;
        if (bits >= 0) this.surprise[token] = bits / 1000;
      }
    });
    this.criticalPath = this.size ? this.position.reduce((most, one) => Math.max(most, one), 0) + 1 : 0;
    this.onCritical = new Set(row.critical);
  }

  /** Where the tokens of a span lie in its text, and their roles. */
  #cut(span, first) {
    const [count, text, pieces] = [this.count[span], this.text[span], this.pieces[span]];
    let [at, piece, end] = [0, 0, pieces[0] ?? 0];
    for (let i = 0; i < count; i += 1) {
      const length = this.ownTexts ? this.lengths[span][i] : 0;
      const from = this.ownTexts ? at : Math.floor((i * text.length) / count);
      while (from >= end && piece + 2 < pieces.length) end += pieces[(piece += 2)];
      this.role[first + i] = pieces[piece + 1] ?? 0;
      this.start[first + i] = this.ownTexts ? at : 0;
      this.stop[first + i] = this.ownTexts ? at + length : text.length;
      at += length;
    }
  }

  textOf(token) {
    return this.text[this.span[token]].slice(this.start[token], this.stop[token]);
  }

  path(token) {
    return this.addresses[this.address[this.span[token]]];
  }

  sampled(token) {
    return (this.flags[this.span[token]] & 1) === 1;
  }

  aside(token) {
    return (this.flags[this.span[token]] & 2) === 2;
  }

  /** Whether token i sees token j. */
  seen(i, j) {
    const [a, b] = [this.address[this.span[i]], this.address[this.span[j]]];
    return j <= i && this.related(a, b);
  }

  related(a, b) {
    return this.sees[a * this.addresses.length + b] === "1";
  }

  /** Mean surprise of a span in bits; NaN without any. */
  meanSurprise(span) {
    const known = (this.bits[span] ?? []).filter((bits) => bits >= 0);
    return known.length ? known.reduce((sum, bits) => sum + bits, 0) / known.length / 1000 : NaN;
  }

  /** What a token belongs to, as its class: trunk, summary, plan, or path with its verdict. */
  kind(token) {
    const address = this.address[this.span[token]];
    if (this.role[token] & ROLE.plan) return "plan";
    if (this.role[token] & ROLE.summary) return "summary";
    if (!this.addresses[address].length) return "trunk";
    return this.verdicts[address] ?? "path";
  }

  placeOf(token) {
    const path = this.path(token);
    const where = path.map(([fork, lane]) => `fork ${fork + 1}, path ${lane + 1}`).join(" › ");
    const part = this.role[token] & ROLE.plan ? "plan" : this.role[token] & ROLE.summary ? "summary" : "";
    return [where || (part ? "" : "trunk"), part].filter(Boolean).join(" · ");
  }
}

/** How strongly surprise tints a token, 0 .. 4; unknown surprise in the middle. */
const LEVELS = [0.05, 0.5, 1.5, 3];
const level = (bits) => (Number.isNaN(bits) ? 2 : LEVELS.filter((bound) => bits >= bound).length);
