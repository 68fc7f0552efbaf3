"""An XGBoost model's trees as arrays, for a few rows at a time between two tokens.

`Booster.inplace_predict` is made for many rows: for one, what happens around its trees costs
several times the trees. `Trees` says the same, but for the last bit of the logarithm that all rows
share.
"""

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xgboost as xgb

Floats = NDArray[np.float32]


class Trees:
    """Boosted trees of one output, without categories or dropped trees.

    `columns` are those of the model's features that a tree asks for, ascending: the others need not
    be computed.

    All nodes stand in one row, and leaves are their own children: every tree is gone through in as
    many steps as the deepest has. Source of the fields: XGBoost's "JSON schema of models".
    """

    def __init__(self, booster: "xgb.Booster") -> None:
        learner = json.loads(booster.save_raw("json"))["learner"]
        trees = learner["gradient_booster"]["model"]["trees"]
        sizes = [len(tree["left_children"]) for tree in trees]
        self._roots = np.cumsum([0, *sizes[:-1]]).astype(np.intp)

        def column(name: str, dtype: type) -> NDArray[Any]:
            return np.concatenate([np.array(tree[name], dtype) for tree in trees])

        left, right = column("left_children", np.intp), column("right_children", np.intp)
        own, start = np.arange(len(left)), np.repeat(self._roots, sizes)
        leaf = left < 0
        left, right = (np.where(leaf, own, child + start) for child in (left, right))
        asked = column("split_indices", np.intp)
        self.columns: NDArray[np.intp] = np.unique(asked[~leaf])
        self._feature = np.where(leaf, 0, np.searchsorted(self.columns, asked))
        self._threshold = column("split_conditions", np.float32)  # of a leaf, its value
        # the child of a number that is smaller than the threshold, or not, or that is missing
        missing = np.where(column("default_left", np.bool_), left, right)
        self._children = np.stack([right, left, missing]).ravel()
        self._nodes = len(left)
        self._depth = _depth(left, right, self._roots)
        stored = learner["learner_model_param"]["base_score"]
        base = np.float32(np.ravel(json.loads(stored))[0])  # a list since XGBoost 3.1
        self._base = np.float32(-math.log(np.float32(1) / base - np.float32(1)))

    def margin(self, features: Floats) -> Floats:
        """Scores of `features` [rows, columns] on the logit scale: float32 [rows]."""
        rows = np.arange(len(features))
        at = np.repeat(self._roots[:, None], len(features), axis=1)
        for _ in range(self._depth):
            values = features[rows, self._feature[at]]
            way = (values < self._threshold[at]) + 2 * np.isnan(values)
            at = self._children[way * self._nodes + at]
        leaves = self._threshold[at]
        leaves[0] += self._base
        # one tree after the other, as XGBoost adds them: a sum along an axis may go in pairs
        margin: Floats = np.add.accumulate(leaves, axis=0)[-1]
        return margin


def _depth(left: NDArray[np.intp], right: NDArray[np.intp], roots: NDArray[np.intp]) -> int:
    depth, level = 0, set(roots.tolist())
    while inner := {i for i in level if left[i] != i}:
        level = {int(child[i]) for i in inner for child in (left, right)}
        depth += 1
    return depth
