"""Answers that are hard to draw in a terminal."""

from parallel_r1 import models
from parallel_r1.answers.parser import parse
from parallel_r1.answers.rollout import Problem, Rollout
from parallel_r1.answers.schemas import DEFAULT, SCHEMAS
from parallel_r1.answers.visibility import latency

LONG = "a sentence of some words that goes on and on; " * 12
HARD = {
    "wide": DEFAULT.write(["数学は楽しい。" * 20, "🙂 emoji 😀 " * 15], "两条路径都很好。" * 10) + " 答えは 7",
    "long": LONG + DEFAULT.write([LONG, LONG + "\n" + LONG], LONG) + "Final Answer: 1",
    "one-word": DEFAULT.write(["9" * 300, "b"], "c" * 300),
    "eight": DEFAULT.write([f"try {number}: no" for number in range(8)], "none"),
    "nested": DEFAULT.write(
        ["x" + DEFAULT.write(["a", "b" + DEFAULT.write([LONG, "深い"], "inner")], "c") + "y", "two"], "both"
    ),
    "commands": DEFAULT.write(["red \x1b[31m bell \x07 back \x9b31m", "\x1b]0;title\x07\r over"], "clear \x1b[2J"),
    "malformed": "<Path>stray " + DEFAULT.write(["one", "two"], "open").replace("</Summary>", "") + " <Parallel>cut",
    "empty": "",
    "blank": "\n\n  \n",
    "tabs": "a\tb\tc\n" * 3,
}
"""Name -> text in our own schema."""


def hard_rollouts():
    """Those texts, and plans and heads under every schema, as judged answers."""
    texts = [(name, text, DEFAULT) for name, text in HARD.items()]
    texts += [
        (name, "so " + schema.write([LONG, "two"], "both", ["1: 計画 " + LONG, "2: b"]), schema)
        for name, schema in SCHEMAS.items()
    ]
    for name, text, schema in texts:
        tokenizer = models.train_tokenizer([text or "x"], 300, 1, schema)
        tags = models.tag_ids(tokenizer)
        ids = tokenizer(text)["input_ids"] if text else [0]
        trace = parse(ids, tags)

        def decode(tokens, tokenizer=tokenizer):
            return tokenizer.decode(tokens)

        problem = Problem(name, f"{name}: draw 7 — 問題 {LONG if name == 'long' else ''}\n", "7", "hard")
        terms = {"accuracy": -1.0}
        yield Rollout(problem, trace, trace.texts(decode), name == "wide", latency(trace), len(trace.token_ids), terms)
