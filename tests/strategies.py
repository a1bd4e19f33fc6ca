"""Random answers: trees of trunk text, forks, paths and summaries, as texts and as token ids."""

from hypothesis import strategies as st

from parallel_r1.answers.schemas import DEFAULT

words = st.text(alphabet="ab 1\n", min_size=1, max_size=6).filter(lambda text: text.strip())


def path(depth: int) -> st.SearchStrategy[str]:
    return words if depth == 0 else st.one_of(words, st.tuples(words, fork(depth - 1), words).map("".join))


def fork(depth: int) -> st.SearchStrategy[str]:
    paths = st.lists(path(depth).map(lambda text: f"<Path>{text}</Path>"), min_size=2, max_size=4).map("".join)
    return st.tuples(paths, words).map(lambda parts: f"<Parallel>{parts[0]}{DEFAULT.join}{parts[1]}</Summary>")


well_formed = st.lists(st.one_of(words, fork(0), fork(1), fork(2)), min_size=1, max_size=4).map("".join)
"""Answers in the method's format, with forks nested up to three deep."""

anything = st.lists(
    st.one_of(st.sampled_from(DEFAULT.tags), st.sampled_from(["a", "\n", " ", "bc", "<Pat"])), max_size=24
).map("".join)
"""Tags and text in any order: what a model might write."""
