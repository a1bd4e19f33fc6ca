// Elements by name. Text always becomes a text node, so nothing in an answer is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") node.style.cssText = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const number = (value) => value.toLocaleString("en-US");
const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

/** The verdicts on a path that are shown: its mark and its words. */
const VERDICTS = { right: ["✓", "right"], wrong: ["✗", "wrong"], failed: ["–", "no answer"] };

/** Characters that cannot be seen, made visible. */
function visible(text) {
  const marks = { "\n": "⏎", "\t": "⇥", " ": "␣", "\r": "␍", "\0": "␀" };
  return text.replace(/[\n\t \r\0]/g, (character) => marks[character]);
}
