// Earlier questions, kept in this browser alone. A store that is full or refused costs the memory, never the answer.

const NAME = "parallel-r1";
const MOST = 30;

/** All that is kept, the newest first. */
export function read() {
  try {
    const kept = JSON.parse(localStorage.getItem(NAME) ?? "[]");
    return Array.isArray(kept) ? kept : [];
  } catch {
    return [];
  }
}

/** Keep a question with its answer; the oldest make room. */
export function keep(entry) {
  for (let kept = [entry, ...read()].slice(0, MOST); kept.length; kept = kept.slice(0, kept.length >> 1)) {
    try {
      localStorage.setItem(NAME, JSON.stringify(kept));
      return;
    } catch {
      // Too much: try with half of it.
    }
  }
}

export function forget() {
  try {
    localStorage.removeItem(NAME);
  } catch {
    // Nothing was kept.
  }
}
