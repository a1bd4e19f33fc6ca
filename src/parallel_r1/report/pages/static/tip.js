// What the tip beside a token says, and where it stands.

/** Probability and surprise of a token, or the mean of its span where tokens have no texts of their own. */
function chance(answer, token) {
  const span = answer.span[token];
  const count = answer.count[span];
  const bits = answer.ownTexts ? answer.surprise[token] : answer.meanSurprise(span);
  if (Number.isNaN(bits)) return "probability unknown";
  const surprise = `${bits < 0.0005 ? "0" : bits.toPrecision(bits < 0.1 ? 1 : 3)} bits`;
  const p = probability(2 ** -bits);
  if (answer.ownTexts || count === 1) return `p = ${p}, surprise ${surprise}`;
  return `span of ${count} tokens, mean surprise ${surprise} (p = ${p} a token)`;
}

/**
 * The lines of the tip.
 * @param {{i: number, j: number} | undefined} cell a square of the mask: token i, which may see token j.
 */
function tipLines(answer, token, cell) {
  const text = answer.textOf(token);
  const short = text.length > 160 ? `${text.slice(0, 159)}…` : text;
  const place = [`token ${token}`, `position ${answer.position[token]}`, answer.placeOf(token)];
  if (answer.aside(token)) place.push("no part of the answer");
  const lines = [
    el("code", {}, short ? visible(short) : "no text of its own"),
    el("div", {}, answer.sampled(token) ? `sampled, ${chance(answer, token)}` : "given by the runtime"),
    el("div", { class: "quiet" }, place.join(", ")),
  ];
  if (cell && cell.i !== cell.j) {
    const verb = cell.j > cell.i ? "comes before" : answer.seen(cell.i, cell.j) ? "sees" : "does not see";
    lines.push(el("div", {}, `${verb} token ${cell.j} ‘${visible(answer.textOf(cell.j))}’`));
  }
  return lines;
}

/** Put the tip below a box of the window, or above it where there is no room. */
function placeTip(tip, box) {
  const { offsetWidth: width, offsetHeight: height } = tip;
  const below = box.bottom + 8 + height < innerHeight;
  tip.style.left = `${clamp(box.left, 8, Math.max(8, document.documentElement.clientWidth - width - 8))}px`;
  tip.style.top = `${below ? box.bottom + 8 : Math.max(8, box.top - height - 8)}px`;
}

const probability = (p) => (p >= 0.9995 ? ">0.999" : p < 0.001 ? p.toExponential(1) : p.toPrecision(3));
