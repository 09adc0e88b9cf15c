"""What the outputs of a network mean: number of outputs, logits per class and training loss."""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from evaluation.findings import AnyTable, MultiLabelTable
from evaluation.predictions import PredictionTable, class_pairs
from lightning_modules.freezing import require
from lightning_modules.losses import LossFunction

PAIR_MARGIN = 1e-9  # distance of pair probabilities from 0 and 1, for solvable equations
MIN_PROBABILITY = 1e-30  # of a coupled class, whose logarithm is the logit


class Head:
    """One output per class; their softmax gives the class probabilities."""

    #: whether predictions and exported files have the outputs, from which logits are computed
    stores_outputs = False
    #: what the outputs are, for someone who loads the network with timm alone
    meaning = "the outputs are logits"
    #: whether images have several labels (B, K), one for each finding, instead of one label (B,)
    is_multi_label = False
    #: function of the logits that gives the probabilities, as Python code
    activation = "softmax(dim=1)"

    def __init__(self, class_names: list[str], loss_function: LossFunction) -> None:
        self.num_classes, self.loss_function = len(class_names), loss_function
        self.num_outputs = self.num_classes  # that the network needs

    def logits(self, outputs: Tensor) -> Tensor:
        """One logit per class, (B, K), of the outputs; the softmax gives the probabilities."""
        return outputs

    def outputs(self, values: Tensor) -> Tensor:
        """The network's outputs, given what predictions store: logits (B, K), or the outputs."""
        return values

    def decisions(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and labels (N,) of the decisions between C classes, one for each label."""
        return logits, labels

    @property
    def num_choices(self) -> int:
        """Number of classes C between which each of `decisions` is made."""
        return self.num_classes

    def make_table(
        self, rows: pd.DataFrame, values: np.ndarray, class_names: list[str], meta: dict[str, Any]
    ) -> AnyTable:
        """The prediction table of logits (n, K), or of stored outputs."""
        return PredictionTable(rows, values, class_names, meta)

    def loss(self, outputs: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
        """Scalar training loss of the outputs and labels (B,) or class probabilities (B, K)."""
        return self.loss_function(self.logits(outputs), target, class_weights)


class SigmoidHead(Head):
    """One output z for two classes, with logits [0, z]: their softmax is the sigmoid of z.

    Cross entropy on these logits is binary cross entropy on z, and class weights (1, w) act as its
    `pos_weight` w.
    """

    meaning = "the output is the logit of the second class"

    def __init__(self, class_names: list[str], loss_function: LossFunction) -> None:
        if len(class_names) != 2:
            raise ValueError(f"head: sigmoid is for two classes, not {class_names}")
        super().__init__(class_names, loss_function)
        self.num_outputs = 1

    def logits(self, outputs: Tensor) -> Tensor:
        """The logits [0, z], (B, 2), of outputs z, (B,) or (B, 1)."""
        z = outputs.reshape(-1, 1)
        return torch.cat([torch.zeros_like(z), z], dim=1)

    def outputs(self, values: Tensor) -> Tensor:
        """The difference of the logits, (B, 1)."""
        return values[:, 1:] - values[:, :1]


class OrdinalHead(Head):
    """K-1 outputs for K ordered classes: output k tells the grades above k from grade k.

    The sigmoid of output k plus log(K-1-k) is the probability of a grade above k among those that
    are at least k (a continuation ratio model), so that outputs of 0 are equally likely classes.
    Two classes give the logits of the sigmoid head.
    """

    meaning = "output k plus log(K-1-k) is the logit of a class above k, given at least class k"

    def __init__(self, class_names: list[str], loss_function: LossFunction) -> None:
        super().__init__(class_names, loss_function)
        self.num_outputs = self.num_classes - 1

    def logits(self, outputs: Tensor) -> Tensor:
        """Logarithms of the class probabilities (B, K) up to a constant, of outputs (B, K-1)."""
        z = outputs + self._offsets(outputs)
        # log p(k+1) - log p(k): that of passing k, and of stopping at k+1 unless it is the last
        steps = z + functional.pad(functional.logsigmoid(-z[..., 1:]), (0, 1))
        return functional.pad(steps.cumsum(dim=1), (1, 0))

    def outputs(self, values: Tensor) -> Tensor:
        """The outputs (B, K-1) of logits (B, K): the log-odds of all classes above k against k."""
        above = [values[:, k + 1 :].logsumexp(dim=1) for k in range(self.num_outputs)]
        return torch.stack(above, dim=1) - values[:, :-1] - self._offsets(values)

    def _offsets(self, like: Tensor) -> Tensor:
        """log(K-1-k) of each output k, (K-1,), of the device and type of `like`."""
        return like.new_tensor([math.log(above) for above in range(self.num_outputs, 0, -1)])


class OneVsOneHead(Head):
    """One binary output per pair of classes, P = K(K-1)/2, coupled into class probabilities."""

    stores_outputs = True  # pair logits; only torch can solve the linear systems that couple them
    meaning = "the outputs are logits of the first against the second class of each pair"

    def __init__(self, class_names: list[str], loss_function: LossFunction) -> None:
        super().__init__(class_names, loss_function)
        self.pairs = class_pairs(self.num_classes)
        self.num_outputs = len(self.pairs)

    def logits(self, outputs: Tensor) -> Tensor:
        """Logarithms of the coupled class probabilities, (B, K), of pair logits (B, P)."""
        return coupled_logits(outputs, self.num_classes)

    def make_table(
        self, rows: pd.DataFrame, values: np.ndarray, class_names: list[str], meta: dict[str, Any]
    ) -> AnyTable:
        """The prediction table of pair logits (n, P) and their coupled logits."""
        coupled = self.logits(torch.from_numpy(values)).numpy()
        return PredictionTable(rows, coupled, class_names, meta, pair_logits=values)

    def loss(self, outputs: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
        """Mean loss over images and the K-1 pairs that have the class of the image."""
        if target.ndim == 2:
            raise ValueError("head: one_vs_one needs labels; mixup cannot be combined with it")
        total = outputs[:, :0].sum()  # 0, but it gives every output a gradient
        for column, pair in enumerate(self.pairs):
            rows = (target == pair[0]) | (target == pair[1])
            z, label = outputs[rows, column], (target[rows] == pair[1]).long()
            if not len(label):
                continue
            weights = None if class_weights is None else class_weights[list(pair)]
            logits = torch.stack([z, torch.zeros_like(z)], dim=1)
            total = total + self.loss_function(logits, label, weights) * len(label)
        return total / (len(outputs) * (self.num_classes - 1))  # pairs of each image


class MultiLabelHead(Head):
    """One output for each finding, whose sigmoid is its probability: several may be present.

    The loss is the mean over the known labels of a batch: each is a label of two classes with the
    logits [0, z], as of the sigmoid head, which this head equals for one finding. Unknown labels,
    -1, are left out. Class weights (K, 2) are those of absence and presence of each finding.
    """

    meaning = "the outputs are the logits of the findings"
    is_multi_label = True
    activation = "sigmoid()"
    num_choices = 2

    def decisions(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [0, z] (N, 2) and labels (N,) of the N known labels."""
        known = labels >= 0
        z = logits[known].reshape(-1, 1)
        return torch.cat([torch.zeros_like(z), z], dim=1), labels[known]

    def loss(self, outputs: Tensor, target: Tensor, class_weights: Tensor | None) -> Tensor:
        """Mean loss over the known labels among the labels (B, K); 0 if there is none."""
        if target.is_floating_point():
            raise ValueError("head: multi_label needs labels; mixup cannot be combined with it")
        logits, labels = self.decisions(outputs, target)
        if not len(labels):
            return outputs.sum() * 0  # 0, but it gives every output a gradient
        weights = None if class_weights is None else class_weights[(target >= 0).nonzero()[:, 1]]
        return self.loss_function(logits, labels, weights)

    def make_table(
        self, rows: pd.DataFrame, values: np.ndarray, class_names: list[str], meta: dict[str, Any]
    ) -> AnyTable:
        """The table of the logits (n, K) of all findings."""
        return MultiLabelTable(rows, values, class_names, meta)


def coupled_logits(pair_logits: Tensor, num_classes: int) -> Tensor:
    """Logarithms of the coupled class probabilities, (B, K), of pair logits (B, K(K-1)/2)."""
    return couple(pair_logits, num_classes).clamp_min(MIN_PROBABILITY).log().float()


#: To add a head, enter its class here; `head: NAME` in a config then selects it.
HEADS = {
    "softmax": Head,
    "sigmoid": SigmoidHead,
    "ordinal": OrdinalHead,
    "one_vs_one": OneVsOneHead,
    "multi_label": MultiLabelHead,
}


def create_head(name: str, class_names: list[str], loss_function: LossFunction) -> Head:
    """Creates the head with this name in `HEADS`; ValueError for an unknown name."""
    require("head", repr(name), name in HEADS, f"one of {', '.join(HEADS)}")
    return HEADS[name](class_names, loss_function)


def couple(pair_logits: Tensor, num_classes: int) -> Tensor:
    """Class probabilities (n, K) in double precision from pair logits (n, K(K-1)/2).

    A pair's logit is that of its first class against its second. The probabilities minimize
    ``sum_ij (r_ji p_i - r_ij p_j)^2`` and sum to 1 (Wu, Lin and Weng 2004, their second method).
    If the pairs are consistent with some p, ``r_ij = p_i / (p_i + p_j)``, the result is p.
    """
    r = _pair_probabilities(pair_logits.double(), num_classes)
    q: Tensor = torch.diag_embed(r.square().sum(dim=1)) - r.transpose(1, 2) * r
    system = functional.pad(q, (0, 1, 0, 1), value=1.0)  # with the constraint and its multiplier
    system[:, -1, -1] = 0
    right = functional.pad(torch.zeros_like(q[:, 0]), (0, 1), value=1.0)
    solved: Tensor = torch.linalg.solve(system, right)[:, :num_classes].clamp_min(0)
    return solved / solved.sum(dim=1, keepdim=True)


def _pair_probabilities(pair_logits: Tensor, num_classes: int) -> Tensor:
    """Matrices r (n, K, K): r[:, i, j] is the probability of i against j, r[:, i, i] is 0."""
    first, second = zip(*class_pairs(num_classes), strict=True)
    if pair_logits.ndim != 2 or pair_logits.shape[1] != len(first):
        shape, pairs = tuple(pair_logits.shape), len(first)
        raise ValueError(f"pair_logits have shape {shape}, not (n, {pairs}): {num_classes} classes")
    of_first = torch.sigmoid(pair_logits).clamp(PAIR_MARGIN, 1 - PAIR_MARGIN)
    r = pair_logits.new_zeros(len(pair_logits), num_classes, num_classes)
    r[:, first, second] = of_first
    r[:, second, first] = 1 - of_first
    return r
