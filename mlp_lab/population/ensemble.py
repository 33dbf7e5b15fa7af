"""The average of the members' predictions, as logits that any task's metrics and tables take.

Symbols: K members, B batch, C outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlp_lab.data.spec import TaskName


def ensemble_logits(task: TaskName, logits: Tensor) -> Tensor:
    """Averages predictions: of a regression the values, of classes and labels the probabilities.

    By Jensen's inequality the cross-entropy of averaged probabilities is at most the members' mean (Lakshminarayanan et
    al. 2017 average them for deep ensembles).

    Args:
        task: what the logits stand for.
        logits: (K, B, C).

    Returns:
        (B, C): log p of the classes, log-odds of the labels, or the mean value.

    >>> ensemble_logits("regression", torch.tensor([[[1.0]], [[3.0]]]))
    tensor([[2.]])
    """
    members = len(logits)
    if task == "regression":
        return logits.mean(0)
    if task == "multiclass":
        return logits.log_softmax(2).logsumexp(0) - torch.tensor(float(members), dtype=logits.dtype).log()
    positive = torch.nn.functional.logsigmoid(logits).logsumexp(0)
    return positive - torch.nn.functional.logsigmoid(-logits).logsumexp(0)  # the member count cancels
