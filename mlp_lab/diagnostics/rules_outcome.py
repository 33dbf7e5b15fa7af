"""Rules about what comes out: no better than guessing, one class only, too simple, or learnt by heart."""

from __future__ import annotations

import math

from mlp_lab.diagnostics import fixes
from mlp_lab.diagnostics.evidence import Evidence, Facts, per_layer
from mlp_lab.diagnostics.findings import Severity, Verdict
from mlp_lab.diagnostics.outcome import ENOUGH, Outcome, outcome

PATIENCE = 3  # epochs before the outcome of a run is judged
NEVER = 0.97
IMBALANCED, GAINED = 1.5, 0.15
UNDERFIT, GAP = 0.25, 0.1
STRONG_DROPOUT, STRONG_DECAY = 0.6, {"adamw": 0.3, "muon": 0.3}
FALLING = 0.03
RISE, MEMORISED = 1.15, 0.5
EPOCHS_PAST = 3


def _late(evidence: Evidence, so_far: Outcome) -> bool:
    """Whether three epochs and half of the plan are behind us, or all of it; and 50 steps in any case."""
    half = 2 * evidence.step >= evidence.facts.planned_steps
    return evidence.step >= ENOUGH and so_far.judged and ((so_far.epochs >= PATIENCE and half) or so_far.over)


def not_learning(evidence: Evidence) -> Verdict | None:
    """Judges a network that never beat guessing; after three epochs and half of the plan.

    The validation loss has never been below 97% of that of the best constant prediction (healthy runs were below
    90% within two epochs). Where no verdict before it says why, signals and steps are healthy, and what remains is
    the data: labels that do not belong to their rows, or features that say nothing about the target. Dropout or decay
    so strong that nothing gets through is named, if it is there.
    """
    so_far = outcome(evidence)
    if not _late(evidence, so_far) or not (so_far.best_val > NEVER or (math.isnan(so_far.best_val) and so_far.unmoved)):
        return None
    strong = too_strong(evidence.facts)
    memorised = so_far.train < MEMORISED
    shown = min((one for one in (so_far.best_val, so_far.best) if not math.isnan(one)), default=math.nan)
    return Verdict(
        code="not_learning",
        severity="critical",
        step=evidence.step,
        evidence={"loss_over_guessing": shown, "train_over_guessing": so_far.train},
        message=f"Nothing is learnt that holds on new rows: the best validation loss is {so_far.best_val:.2f} of what "
        "always guessing the same costs"
        + (", though the training rows are being learnt by heart. " if memorised else ". ")
        + (
            f"The regularisation ({', '.join(strong)}) leaves nothing of the signal."
            if strong
            else "If no other verdict says why, suspect the data: see that rows and labels belong together (a shuffled "
            "or shifted target column), and that the features can tell the target. `--trainer.overfit_batches 1` must "
            "bring the training loss near 0; if it does, the network is fine."
        ),
        fix=fixes.without(evidence.facts, strong),
    )


def too_strong(facts: Facts) -> list[str]:
    """Returns the settings that hold the network back: dropout of 0.6 and more, or decay that outweighs the gradient.

    An L2 penalty (sgd, adam, rmsprop) of 0.03 shrinks weights by 3% of their size per unit of gradient; decoupled decay
    acts through lr · decay and may be ten times larger (Loshchilov & Hutter 2019).
    """
    strong = ["dropout"] if facts.dropout >= STRONG_DROPOUT else []
    if facts.weight_decay >= STRONG_DECAY.get(facts.optimizer, 0.03):
        strong.append("weight_decay")
    return strong


def majority_class(evidence: Evidence) -> Verdict | None:
    """Judges a classifier that says one class for (nearly) every row; after three epochs and half of the plan.

    The most frequent class is at least 1.5 times as frequent as it would be if all were equal, and less than 15% of
    what there is to gain over always saying it is gained (`_says_one_class`). A warning: the loss may be right
    (probabilities of rare classes below one half), but accuracy hides it, and it is critical where the loss is
    guessing's, too.
    """
    facts, so_far = evidence.facts, outcome(evidence)
    accuracy = evidence.epoch_series("val/accuracy")[-1:]
    if not accuracy or not _late(evidence, so_far) or facts.class_weights or facts.classes < 2:
        return None
    score = accuracy[0][1]
    f1 = next((value for _, value in evidence.epoch_series("val/f1")[-1:]), math.nan)
    frequent = facts.majority_share * max(facts.classes, 2) >= IMBALANCED and facts.majority_share > 0.3
    if not frequent or not _says_one_class(facts, score, f1):
        return None
    moves = max(
        (max(per_layer(one.values, "update/ratio").values(), default=0.0) for one in evidence.steps), default=0.0
    )
    measure = "auprc" if math.isnan(f1) else "f1"
    shown = {"val/accuracy": score, "baseline_accuracy": facts.baseline_accuracy, "val/f1": f1}
    return Verdict(
        code="majority_class",
        severity="critical" if so_far.unmoved else "warning",
        step=evidence.step,
        evidence={
            **{key: value for key, value in shown.items() if not math.isnan(value)},
            "majority_share": facts.majority_share,
            "loss_over_guessing": so_far.last,
        },
        message=f"The network predicts the most frequent class for (nearly) every row: its accuracy is {score:.1%}, "
        f"and always saying that class scores {facts.baseline_accuracy:.1%}. {facts.majority_share:.0%} of the "
        f"training rows are of that class, so the others hardly count in the mean loss. Judge by "
        f"{measure}, and let rare classes count as much as frequent ones.",
        fix=fixes.class_balance(facts, moves),
    )


def _says_one_class(facts: Facts, accuracy: float, f1: float) -> bool:
    """Whether hardly anything is gained over always saying the most frequent class.

    Always saying a class of share p scores an accuracy of p and a macro f1 of 2p / (1 + p) / classes: the others' are
    0. A gain is the part covered of the way from there to 1. Where f1 is not measured (two classes) the accuracy must
    be that of the constant answer within half a point. It may lie up to five points below: a few rows are then given
    to other classes, wrongly.
    """
    constant = facts.baseline_accuracy
    if accuracy < constant - 0.05:
        return False
    if math.isnan(f1):
        return accuracy <= constant + 0.005
    constant_f1 = 2 * constant / (1 + constant) / facts.classes
    return accuracy < constant + GAINED * (1 - constant) and f1 < constant_f1 + GAINED * (1 - constant_f1)


def underfitting(evidence: Evidence) -> Verdict | None:
    """Judges a network that is too simple for its training rows; after five epochs and half of the plan.

    The training loss is still above a quarter of guessing's and the validation loss is no worse than it by more than
    a tenth of guessing's, *and* there is a reason. A layer narrower than the classes, dropout of 0.6 and more, or
    strong decay: a warning. A loss that still fell by 3% an epoch at the plan's end: only worth knowing. Without one it
    may be all that the data can tell (adult stops at 0.6 of guessing).
    """
    facts, so_far = evidence.facts, outcome(evidence)
    late = so_far.judged and (so_far.over or (so_far.epochs >= 5 and 2 * evidence.step >= facts.planned_steps))
    if not late or not so_far.last > UNDERFIT or so_far.unmoved or so_far.val > so_far.train + GAP:
        return None
    strong = too_strong(facts)
    narrow = facts.widths and facts.classes > 2 and min(facts.widths) < facts.classes
    severity: Severity = "warning"
    if strong:
        why, fix = f"{' and '.join(strong)} hold it back", fixes.without(facts, strong)
    elif narrow:
        why = f"a hidden layer of {min(facts.widths)} units cannot tell {facts.classes} classes apart"
        fix = fixes.more_capacity(facts)
    elif so_far.over and facts.planned_epochs and still_falling(evidence):
        severity = "info"
        why = "the run ended while its loss was still falling"
        fix = [fixes.flag("trainer.max_epochs", 3 * facts.planned_epochs)]
    else:
        return None
    return Verdict(
        code="underfitting",
        severity=severity,
        step=evidence.step,
        evidence={
            "train_over_guessing": so_far.train,
            "val_over_guessing": so_far.val,
            "parameters": float(facts.parameters),
        },
        message=f"The network underfits: even on its training rows the loss is {so_far.train:.2f} of guessing's, and "
        f"no worse on new ones ({so_far.val:.2f}), because {why}.",
        fix=fix,
    )


def still_falling(evidence: Evidence) -> bool:
    """Whether the validation loss fell by 3% an epoch and more over the last three passes."""
    losses = [value for _, value in evidence.epoch_series("val/loss")][-4:]
    return len(losses) >= 3 and losses[-1] < losses[0] * (1 - FALLING) ** (len(losses) - 1)


def overfitting(evidence: Evidence) -> Verdict | None:
    """Judges a network that learns its training rows by heart; from the fifth epoch on.

    The validation loss is 15% above its minimum, which lies three epochs or more back, and the training loss is less
    than half of it: what is learnt now holds for the training rows only. Or the training loss is below a tenth of the
    validation loss and that above a tenth of guessing's. A warning: the best checkpoint was kept, but more regular
    training would have reached further (Srivastava et al. 2014; Prechelt 1998 on stopping early).
    """
    so_far = outcome(evidence)
    losses = evidence.epoch_series("val/loss")
    if so_far.epochs < 5 or len(losses) < 5 or math.isnan(so_far.train):
        return None
    best = min(range(len(losses)), key=lambda at: losses[at][1])
    last = losses[-1][1]
    train = so_far.train * evidence.facts.baseline_loss
    risen = last > RISE * losses[best][1] and len(losses) - 1 - best >= EPOCHS_PAST and train < MEMORISED * last
    gap = train < 0.1 * last and so_far.val > 0.1
    if not (risen or gap) or not so_far.val > 0.05:
        return None
    return Verdict(
        code="overfitting",
        severity="warning",
        step=evidence.step,
        evidence={
            "train/loss": train,
            "val/loss": last,
            "best_val_loss": losses[best][1],
            "best_step": float(losses[best][0]),
        },
        message=f"The network overfits: the training loss is down at {train:.2g} while the validation loss is "
        f"{last:.3g} (its best was {losses[best][1]:.3g}, at step {losses[best][0]}). With "
        f"{evidence.facts.parameters:,} parameters for {evidence.facts.training_rows:,} rows it can learn each row by "
        "heart instead of what rows have in common.",
        fix=fixes.regularisation(evidence.facts),
    )


def loss_mismatch(evidence: Evidence) -> Verdict | None:
    """Notes a squared error of probabilities on a classification; before the first step. Only worth knowing.

    Where a wrong class is certain the sigmoid or softmax is flat, and the squared error's gradient vanishes with it;
    cross-entropy cancels that factor (Golik et al. 2013; Goodfellow et al. 2016, section 6.2.2).
    """
    if evidence.facts.loss != "brier":
        return None
    better = "bce" if evidence.facts.task in ("binary", "multilabel") else "cross_entropy"
    return Verdict(
        code="loss_mismatch",
        severity="info",
        step=0,
        message="The training loss is the squared error of probabilities. Its gradient vanishes where a wrong class is "
        f"certain, so mistakes are corrected slowly; {better} does not have that flat part.",
        fix=[fixes.flag("model.loss", better)],
    )
