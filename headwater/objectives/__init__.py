"""Objectives: pure functions (outputs, batch) -> (loss, metrics), one a file. No model, no optimizer, no state.

The contract with `headwater.train.loop`: `loss` is a scalar that carries the gradient and is a mean over
`metrics["weight"]` things (targets here; pairs in a preference objective). The loop uses the weight to make
accumulated micro-batches equal one large batch, and averages the other metrics by it. Settings of an objective are
keyword-only; bind them with `functools.partial`.
"""
