"""Logistic regression on features of pictures: what a network of picture classes is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from core.errors import InputError, MissingExtraError

Floats = NDArray[np.float64]
_STRENGTHS = tuple(10.0**k for k in range(-4, 2))  # of the inverse penalty


def logistic_baseline(
    train: Floats, labels: Sequence[int], groups: Sequence[str], test: Floats, *, seed: int = 0
) -> Floats:
    """Probabilities (n, classes) of test features by scikit-learn's logistic regression, classes weighted alike.

    Features are standardised on the training part; the penalty is the one with the highest AUROC (balanced accuracy
    for more than two classes) in five folds over groups of the training part.

    Args:
        train: (m, K), a row a picture.
        labels: their classes, numbered from 0.
        groups: their patients.
        test: (n, K).
        seed: of the folds.

    Raises InputError for one class only, or fewer than two patients of one.
    """
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise MissingExtraError("scikit-learn", "dense") from None
    target = np.asarray(labels)
    patients = [len({g for g, k in zip(groups, labels, strict=True) if k == c}) for c in np.unique(target)]
    if len(patients) < 2 or min(patients) < 2:
        raise InputError("the baseline needs two classes with two patients each to train on")
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000))
    folds = StratifiedGroupKFold(min(5, *patients), shuffle=True, random_state=seed)
    search = GridSearchCV(
        model,
        {"logisticregression__C": list(_STRENGTHS)},
        scoring="roc_auc" if len(patients) == 2 else "balanced_accuracy",
        cv=list(folds.split(train, target, list(groups))),
    )
    search.fit(train, target)
    shares: Floats = search.predict_proba(test)
    return shares
