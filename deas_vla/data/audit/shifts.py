"""Episodes whose inputs come some rows earlier or later than in the others, against what follows from them.

What follows is predicted from the inputs, and from what there was last, by a ridge regression over other episodes. The
score of an episode is the logarithm of a likelihood ratio over all its rows and columns: of its inputs moved by the
shift that fits it best, against those as they are and against no inputs at all. Errors are taken to follow Student's t
with 4 degrees of freedom, so that a few rows of contact do not decide.

Shapes: E episodes, n rows of one, C columns, K directions, V columns of what follows, X regressors, L shifts.
"""

from collections.abc import Callable

import numpy as np

# Of fewer episodes, nobody could say which are the odd ones.
FEWEST = 4
FOLDS, RIDGE, PASSES = 8, 1e-2, 3
# Episodes that a regression is fitted to, at most.
MOST = 100
# An alarm needs this logarithm of a likelihood ratio, and this part of what most episodes would lose by a shift.
CLEAR, PART = 8.0, 0.1

# Gives the (n, X) regressors of an episode, by its position, with its inputs moved by a shift; None: without them.
Design = Callable[[int, int | None], np.ndarray]


def odd_ones(score: np.ndarray, alarm: float, named: float) -> np.ndarray:
    """The episodes, of (E,) scores, with the fault: those above `named`, if one is above `alarm` and most are as far
    below 0; else none. An episode that says nothing has the score 0.
    """
    score = np.nan_to_num(score)
    clear = len(score) >= FEWEST and np.median(score) < -alarm and (score > alarm).any()
    return np.flatnonzero(score > named) if clear else np.array([], int)


def reduced(parts: list[np.ndarray], kept: int, scaled: bool = False) -> list[np.ndarray]:
    """(n, K) of each (n, C) part: the up to `kept` directions in which the rows differ most, with variance 1.

    `scaled`: of columns of one standard deviation each, or of less where one hardly moves.
    """
    rows = sum(map(len, parts))
    mean = sum(each.sum(0, dtype=np.float64) for each in parts) / rows
    covariance = sum((each - mean).T @ (each - mean) for each in parts) / rows
    scale = np.sqrt(covariance.diagonal())
    scale = np.maximum(scale, 1e-3 * scale.max() + 1e-9) if scaled else np.ones_like(scale)
    variance, axes = np.linalg.eigh(covariance / np.outer(scale, scale))
    differs = variance > 1e-6 * variance[-1] + 1e-12
    axes = (axes[:, differs] / np.sqrt(variance[differs]) / scale[:, None])[:, -kept:]
    return [(each - mean) @ axes for each in parts]


def likelihoods(
    design: Design, outputs: list[np.ndarray], fitted: int | None, shifts: list[int | None], skip: np.ndarray
) -> np.ndarray:
    """(L, E) logarithm of the likelihood of the (n, V) `outputs` at each shift.

    Of each episode by a regression at the shift `fitted` over episodes of other folds that are not in (E,) `skip`.
    """
    told, folds = np.empty((len(shifts), len(outputs))), np.arange(len(outputs)) % FOLDS
    for fold in range(FOLDS):
        seen = np.flatnonzero((folds != fold) & ~skip)
        seen = seen[:: -(-len(seen) // MOST)]
        x, y = np.concatenate([design(i, fitted) for i in seen]), np.concatenate([outputs[i] for i in seen])
        gram = x.T @ x
        weight = np.linalg.solve(gram + RIDGE * len(x) * np.eye(len(gram)), x.T @ y)
        error = y - x @ weight
        usual = np.maximum(1.5 * np.median(np.abs(error), 0), 0.3 * error.std(0)) + 1e-3 * y.std(0) + 1e-12
        for i in np.flatnonzero(folds == fold):
            for k, shift in enumerate(shifts):
                error = (outputs[i] - design(i, shift) @ weight) / usual
                told[k, i] = -2.5 * np.log1p(error**2 / 4).sum() - len(error) * np.log(usual).sum()
    return told


def odd_shifts(
    design: Design, outputs: list[np.ndarray], usual: int, shifts: np.ndarray, least: float
) -> tuple[np.ndarray, dict[int, int]]:
    """Episodes off by `least` or more of the (L,) `shifts`, where `usual` is the shift of most.

    Returns:
        (E,) scores, below 0 where an episode is as most; and the odd ones, by their positions, with their shifts.
    """
    far, skip = np.abs(shifts - usual) >= least, np.zeros(len(outputs), bool)
    for _ in range(PASSES):
        told = likelihoods(design, outputs, usual, list(shifts), skip)
        told -= likelihoods(design, outputs, None, [None], skip)
        near = told[~far].max(0)
        score = told[far].max(0) - near.clip(0)
        # The quarter that the regression says least of a row is left out of the next: those with the fault are in it.
        each = near / [len(rows) for rows in outputs]
        skip = each < np.percentile(each, 25)
    limit = max(CLEAR, -PART * float(np.median(score)))
    return score, {int(i): int(shifts[far][told[far, i].argmax()]) for i in odd_ones(score, limit, limit)}
