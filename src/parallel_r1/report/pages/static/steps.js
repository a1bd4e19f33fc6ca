// The step slider: one problem through training; where a problem occurs in one step only, answers to its task.

class Steps {
  constructor(data, onPick) {
    this.data = data;
    this.onPick = onPick;
    this.slider = el("input", {
      type: "range",
      min: "0",
      step: "1",
      "aria-label": "Training step",
      oninput: () => this.#to(Number(this.slider.value)),
    });
    this.label = el("output", {});
    this.what = el("span", { class: "quiet" });
    this.node = el("div", { class: "steps" }, el("div", { class: "steps-words" }, this.label, this.what), this.slider);
    this.byProblem = this.#gather((at) => data.problems[data.problem[at]][4]);
    this.byTask = this.#gather((at) => data.problems[data.problem[at]][2]);
  }

  /** key -> step -> its answers. */
  #gather(keyOf) {
    const all = new Map();
    this.data.step.forEach((step, at) => {
      if (step === null) return;
      const key = keyOf(at);
      if (!all.has(key)) all.set(key, new Map());
      const steps = all.get(key);
      if (!steps.has(step)) steps.set(step, []);
      steps.get(step).push(at);
    });
    return all;
  }

  show(at) {
    const { data } = this;
    const problem = this.byProblem.get(data.problems[data.problem[at]][4]);
    const task = data.problems[data.problem[at]][2];
    const single = (problem?.size ?? 0) < 2;
    this.group = single ? this.byTask.get(task) : problem;
    this.node.hidden = (this.group?.size ?? 0) < 2;
    if (this.node.hidden) return;
    this.numbers = [...this.group.keys()].sort((a, b) => a - b);
    const index = this.numbers.indexOf(data.step[at]);
    this.rank = this.group.get(data.step[at]).indexOf(at);
    this.slider.max = String(this.numbers.length - 1);
    this.slider.value = String(index);
    const stage = data.stages[data.stage[at]];
    this.label.textContent = `step ${number(data.step[at])}${stage ? `, ${stage}` : ""}`;
    this.slider.setAttribute("aria-valuetext", this.label.textContent);
    this.what.textContent = single
      ? `${task} through training; this problem occurs in one step only`
      : "this problem through training";
  }

  #to(index) {
    const answers = this.group.get(this.numbers[index]);
    this.onPick(answers[Math.min(this.rank, answers.length - 1)]);
  }

  move(by) {
    if (!this.node.hidden) this.#to(clamp(Number(this.slider.value) + by, 0, this.numbers.length - 1));
  }
}
