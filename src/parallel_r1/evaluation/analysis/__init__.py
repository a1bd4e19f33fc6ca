"""How the answers of a run think in parallel, measured from its files alone: no model, no tokenizer, no torch.

`read.py` finds the files and reads them in pieces; `forks.py` measures one answer; `paths.py` says what its paths
arrive at, and whether that is right; `columns.py` puts measures into columns; `steps.py` sums them up by step;
`run.py` puts all of it together; `summary.py` has a table for people. Every measure is defined in docs/analysis.md.
"""

from parallel_r1.evaluation.analysis.run import Analysis, analyse

__all__ = ["Analysis", "analyse"]
