// The page: a form, the answers with their figures, a comparison with one chain, and earlier questions.

import * as past from "./past.js";
import { Problem, ask, headers } from "./stream.js";
import { Tree, element } from "./tree.js";

const $ = (id) => document.getElementById(id);
const number = (id) => ($(id).value === "" ? undefined : Number($(id).value));
let model = null;
let stopping = null;
let key = sessionStorage.getItem("key") ?? "";

/** Ask the server which model it has. */
async function meet() {
  const response = await fetch("/v1/models", { headers: headers(key) }).catch(() => null);
  if (response?.status === 401) {
    $("key-row").hidden = false;
    return;
  }
  if (!response?.ok) {
    complain(new Problem("The server cannot be reached. Is it still running?"));
    return;
  }
  [model] = (await response.json()).data;
  $("model").textContent = model.id;
  $("paths").placeholder = model.parallel.paths;
  $("temperature").placeholder = model.parallel.temperature;
  $("latency").placeholder = model.parallel.budget.critical_path;
  if (!$("question").value) $("question").value = model.parallel.example ?? "";
}

/** The request that the form describes. */
function request(question) {
  const options = { mode: $("mode").value, paths: number("paths"), latency: number("latency"), branches: true };
  return {
    model: model.id,
    messages: [{ role: "user", content: question }],
    temperature: number("temperature"),
    seed: number("seed") ?? Math.floor(Math.random() * 2 ** 31),
    parallel: options,
  };
}

/** Show what went wrong. */
function complain(problem) {
  $("problem").textContent = problem.message;
  $("problem").hidden = false;
  if (problem.status === 401) {
    $("key-row").hidden = false;
    $("key").focus();
  }
}

/** The figures of an answer as it grows, or as the server counted them at the end. */
function figures(line, { critical, total, seconds }) {
  line.replaceChildren();
  for (const [name, value] of [
    ["critical path", critical],
    ["tokens", total],
    ["seconds", seconds.toFixed(2)],
  ]) {
    const item = element("span", "", `${name} `);
    item.append(element("b", "", String(value)));
    line.append(item);
  }
}

/** A place on the page for one run of a question. */
function place(runs, title) {
  const run = element("div", "run");
  const body = element("div", "body");
  const line = element("p", "figures");
  run.append(element("h3", "", title), body, line);
  runs.append(run);
  return { run, body, line };
}

/** Run a request and draw it. Returns what is worth keeping: its deltas and figures. */
async function draw(body, runs, title) {
  const { run, body: box, line } = place(runs, title);
  const tree = new Tree(box);
  const deltas = [];
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  let counted = null;
  let stopped = false;
  run.classList.add("running");
  stopping = new AbortController();
  const tick = setInterval(() => figures(line, { ...tree.figures, seconds: seconds() }), 100);
  try {
    for await (const chunk of ask(body, key, stopping.signal)) {
      const delta = chunk.choices[0]?.delta;
      if (delta) {
        tree.take(delta);
        deltas.push(delta);
      }
      if (chunk.usage) {
        const { critical_path_tokens: critical, completion_tokens: total, forks } = chunk.usage;
        counted = { critical, total, forks, seconds: chunk.parallel.seconds };
      }
    }
  } catch (error) {
    stopped = stopping.signal.aborted;
    if (!stopped) complain(error instanceof Problem ? error : new Problem(String(error)));
  } finally {
    clearInterval(tick);
    tree.draw();
    stopping = null;
    run.classList.remove("running");
  }
  counted ??= { ...tree.figures, seconds: seconds(), stopped };
  figures(line, counted);
  if (stopped) line.append(element("span", "", "stopped"));
  return { deltas, counted };
}

/** Ask what is in the form. */
async function submit() {
  const question = $("question").value;
  if (!question.trim() || stopping) return;
  if (!$("key-row").hidden) {
    key = $("key").value;
    sessionStorage.setItem("key", key);
  }
  $("problem").hidden = true;
  if (!model) await meet();
  if (!model) return;
  $("key-row").hidden = true;
  const body = request(question);
  const { runs, article } = card(question);
  const answer = await busy(() => draw(body, runs, titles[body.parallel.mode]));
  if (!answer.deltas.length) {
    article.remove();
    return;
  }
  past.keep({ question, body, ...answer });
  list();
  offer(article, runs, body, answer.counted);
  $("status").textContent = `Answer complete: ${answer.counted.total} tokens, critical path ${answer.counted.critical}.`;
}

const titles = { auto: "Answer", parallel: "Answer with a fork", sequential: "One chain" };

/** Show that something runs, and that it can be stopped. */
async function busy(work) {
  $("ask").disabled = true;
  $("stop").hidden = false;
  try {
    return await work();
  } finally {
    $("ask").disabled = false;
    $("stop").hidden = true;
  }
}

/** A new place for a question, above the earlier ones. */
function card(question) {
  const article = element("article", "answer");
  const runs = element("div", "runs");
  article.append(element("h2", "", question), runs);
  $("answers").prepend(article);
  return { article, runs };
}

/** Offer the same question as one chain of as many tokens. */
function offer(article, runs, body, counted) {
  if (body.parallel.mode === "sequential" || counted.stopped || !counted.forks) return;
  const button = element("button", "plain compare", "Compare with one chain of as many tokens");
  button.type = "button";
  button.addEventListener("click", async () => {
    if (stopping) return;
    button.remove();
    const chain = { ...body, max_tokens: counted.total, parallel: { mode: "sequential", branches: true } };
    const { counted: other } = await busy(() => draw(chain, runs, titles.sequential));
    const times = (a, b) => (b ? `${(a / b).toFixed(2)} times` : "–");
    const verdict =
      `With paths: ${times(counted.critical, other.critical)} the critical path and ` +
      `${times(counted.seconds, other.seconds)} the seconds of one chain (${other.total} tokens).`;
    article.append(element("p", "verdict", verdict));
    $("status").textContent = verdict;
  });
  article.append(button);
}

/** List earlier questions. */
function list() {
  const kept = past.read();
  $("past").hidden = kept.length === 0;
  $("history").replaceChildren(
    ...kept.map((entry) => {
      const item = element("li");
      const button = element("button", "plain", entry.question);
      button.type = "button";
      button.addEventListener("click", () => show(entry));
      item.append(button);
      return item;
    }),
  );
}

/** Show an earlier answer again. */
function show(entry) {
  const { article, runs } = card(entry.question);
  const { body, line } = place(runs, titles[entry.body.parallel.mode]);
  const tree = new Tree(body);
  for (const delta of entry.deltas) tree.take(delta);
  tree.draw();
  figures(line, entry.counted);
  if (model) offer(article, runs, { ...entry.body, model: model.id }, entry.counted);
  article.scrollIntoView({ block: "nearest" });
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
$("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => event.key === "Escape" && stopping?.abort());
$("stop").addEventListener("click", () => stopping?.abort());
$("clear").addEventListener("click", () => {
  past.forget();
  list();
});
list();
await meet();
$("question").focus();
