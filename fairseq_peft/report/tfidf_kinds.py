"""What the TF-IDF baseline fits and how it is measured, for each kind of task (``scores``).

One class a row: logistic regression. Any number of labels: one such a label, against the rest. A
number: ridge regression.
"""

from __future__ import annotations

from fairseq_peft import scores
from fairseq_peft.scores import CLASSES, LABELS, METRICS, NUMBER
from fairseq_peft.text.corpus import sort_labels
from fairseq_peft.text.rows import names_of


class Classes:
    """One class a row.

    Args:
        labels: of the rows of train, as ``Row.label`` has them.

    Attributes:
        names: the classes, in the order of their ids.
        knob: what the estimator is tuned by; its values stand in ``tfidf.GRID``.
    """

    kind, knob = CLASSES, "C"

    def __init__(self, labels: list[str]):
        self.names = sort_labels({name for row in labels for name in names_of(row, self.kind)})

    @property
    def metric(self) -> str:
        """What chooses the setting, on valid."""
        return METRICS[self.kind][0]

    def targets(self, labels: list[str]):
        """What ``fit`` is given, and ``predict`` gives, for these rows."""
        return list(labels)

    def fit(self, features, targets, strength: float):
        """The estimator, fitted."""
        return logistic_regression(strength).fit(features, targets)

    def answers(self, targets):
        """The same as predictions.npz has it: a class that train does not have counts as one behind
        the last."""
        import numpy as np

        ids = {name: number for number, name in enumerate(self.names)}
        return np.array([ids.get(name, len(self.names)) for name in targets])

    def count(self, estimator) -> int:
        """The numbers that were fitted."""
        return int(estimator.coef_.size + estimator.intercept_.size)

    def value(self, targets, predicted) -> float:
        """The metric that chooses."""
        return self.scores(targets, predicted)[self.metric]

    def scores(self, targets, predicted) -> dict:
        """All that result.json says of a split."""
        from sklearn.metrics import f1_score, matthews_corrcoef

        num_correct = sum(guess == label for guess, label in zip(predicted, targets))
        return {
            "accuracy": num_correct / len(targets),
            "macro_f1": float(f1_score(targets, predicted, average="macro")),
            "mcc": float(matthews_corrcoef(targets, predicted)),
        }


class Labels(Classes):
    """Any number of labels a row: targets are (N, labels) zeros and ones."""

    kind = LABELS

    def targets(self, labels):
        import numpy as np

        rows = [set(names_of(row, self.kind)) for row in labels]
        return np.array([[int(name in row) for name in self.names] for row in rows])

    def fit(self, features, targets, strength):
        return EachLabel(features, targets, strength)

    def answers(self, targets):
        return targets

    def count(self, estimator):
        return sum(super(Labels, self).count(one) for one in estimator.fitted if one is not None)

    def scores(self, targets, predicted):
        counts = targets * predicted, targets, predicted
        hit, target, found = (part.sum(0).tolist() for part in counts)
        right = int((targets == predicted).all(1).sum())
        counted = scores.from_label_counts(hit, target, found, right, len(targets))
        return {name: counted[name] for name in METRICS[LABELS]}


class Number(Classes):
    """A number a row: targets are (N,) floats."""

    kind, knob = NUMBER, "alpha"

    def targets(self, labels):
        import numpy as np

        return np.array([float(label) for label in labels])

    def fit(self, features, targets, strength):
        from sklearn.linear_model import Ridge

        return Ridge(strength).fit(features, targets)

    def answers(self, targets):
        return targets

    def count(self, estimator):
        return int(estimator.coef_.size + 1)

    def scores(self, targets, predicted):
        found = scores.of_numbers(predicted, targets)
        return {name: found[name] for name in METRICS[NUMBER]}


KINDS = {each.kind: each for each in (Classes, Labels, Number)}


def logistic_regression(strength: float):
    """Of the L2-penalised kind."""
    from sklearn.linear_model import LogisticRegression

    # tol so tight that the optimum, not the solver, decides; newton-cg needs 20 ms for it
    return LogisticRegression(C=strength, solver="newton-cg", tol=1e-6, max_iter=1000)


class EachLabel:
    """A logistic regression for each label that some rows of train have and some have not; the
    others are predicted as all of train has them.

    Attributes:
        fitted: one a label, or None.
        usual: (labels,) what the first row has.
    """

    def __init__(self, features, targets, strength):
        self.usual = targets[0]
        self.fitted = [
            None
            if column.min() == column.max()
            else logistic_regression(strength).fit(features, column)
            for column in targets.T
        ]

    def predict(self, features):
        """(N, labels) zeros and ones."""
        import numpy as np

        columns = [
            np.full(features.shape[0], usual) if one is None else one.predict(features)
            for one, usual in zip(self.fitted, self.usual)
        ]
        return np.stack(columns, axis=1)
