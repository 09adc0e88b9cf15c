"""Names that a study is held to before there is anything to name: figures, methods of maps."""

from fnmatch import fnmatchcase

# of a class the name goes on: recall/<class>; of a pair: pair/<class>/<class>
NAMES = (
    "accuracy", "balanced_accuracy", "kappa", "kappa_quadratic", "mcc",
    "recall", "recall_macro", "recall_weighted", "precision", "precision_macro",
    "precision_weighted", "specificity", "specificity_macro", "f1", "f1_macro", "f1_weighted",
    "auroc", "average_precision", "sensitivity_at_specificity_0.95",
    "nll", "brier", "ece", "ece_classwise", "pair", "pairs", "pairs_gap",
)  # fmt: skip


# the methods of heat maps, by the names that grad-cam has for them
MAPS = (
    "GradCAM", "GradCAM++", "XGradCAM", "HiResCAM", "LayerCAM", "EigenGradCAM", "EigenCAM",
    "ScoreCAM",
)  # fmt: skip


def is_figure(name: str, level: str = "image") -> bool:
    """Whether a figure may be called so; `*` stands for anything, `study/` for its level."""
    first = name.removeprefix(f"{level}/").split("/")[0]
    return any(fnmatchcase(known, first) for known in NAMES)
