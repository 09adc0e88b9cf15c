"""The registry of metrics: how each metric is computed, named, shown and compared.

`METRICS` is in the order in which metrics are shown. Full names are `accuracy`, `recall/<class>`,
`pair/<class>/<class>`, `study/accuracy` and `patient/recall/<class>`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import partial
from math import inf
from typing import Any, Literal, TypeVar

import numpy as np

from evaluation.metrics import calibration, clinical, confusion, ranking
from evaluation.metrics.calibration_slope import calibration_estimates
from evaluation.metrics.subgroups import equalized_odds
from evaluation.predictions import LEVELS

Kind = Literal[
    "confusion", "prevalence", "image_mean", "calibration", "smooth_calibration",
    "classwise_calibration", "ranking", "estimates",
]  # fmt: skip
Value = TypeVar("Value")
Scope = Literal[
    "overall",
    "class",
    "overall and class",
    "outcome",
    "overall and outcome",
    "prevalence",
    "pair",
    "attribute",
]


@dataclass(frozen=True)
class MetricSpec:
    """One metric: how it is computed, shown and compared.

    `kind` is what `compute` is a function of, and its return value. Metrics of the first six
    kinds share one bootstrap of sums over images, `r` resamples at a time:

    - confusion: matrices (r, K, K), rows are labels -> (r,), or (r, K) for scope `class`.
    - prevalence: matrices of each class against the others at each stated prevalence,
      (r, K, P, 2, 2) -> (r, K P).
    - image_mean: labeled PredictionTable -> (n,), or (n, O) for scope `outcome`; the metric is the
      mean over images.
    - calibration: signed gaps (r, 1, bins) between the predicted class's probability and
      accuracy, as fractions of all images -> (r,).
    - smooth_calibration: the same gaps in equally wide cells of probability (r, cells) -> (r,).
    - classwise_calibration: the gaps in bins of each class (r, K, bins) -> (r, 1 + K).
    - ranking: cumulative true and false positives of one class, (r, G) each, highest score
      first -> (r,); computed for each class and averaged over classes.
    - estimates: (table, clusters, draws, seed) -> Estimates by full name; has its own intervals.

    `scope` is what it has values for: all images, each class, each outcome (class or named group of
    classes against all others), each class at each stated prevalence, each pair of classes, each
    attribute that groups images.
    """

    name: str  # key in results.json and in gates; `name/<class>` for one class
    label: str  # name in tables and plots
    kind: Kind
    compute: Callable[..., Any]
    scope: Scope = "overall"
    higher_is_better: bool = True
    ideal: float | None = None  # best value if neither the lowest nor the highest is best
    minimum: float = 0.0  # smallest possible value
    maximum: float = 1.0
    # a proportion has Wilson's interval if each patient has one image
    interval: Literal["bootstrap", "centered bootstrap", "proportion"] = "bootstrap"
    weights_images_equally: bool = False  # otherwise each class has the same weight
    # one-hot labels and predictions -> mask (n, K) of the images that a class's proportion is of
    counted_images: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    perfect_bound: ranking.PerfectBound | None = None  # lower bound if the observed value is 1
    in_summary: bool = False  # whether main tables and the terminal show it
    in_headline: bool = False  # whether it has a column in tables of paired comparisons
    in_outcomes: bool = False  # whether it has a column in the table of classes and groups
    is_paired: bool = False  # whether paired tests compare it: AUROC or one of the first six kinds
    meaning: str = field(kw_only=True)  # in plain words, for the glossary of a report
    also: str = ""  # another name of it in tables

    def __post_init__(self) -> None:
        if self.is_paired and self.kind == "ranking":
            raise ValueError(f"{self.name}: paired tests cannot compare a metric of kind ranking")

    @property
    def is_rank_based(self) -> bool:
        """Whether it depends on the ranking of all images, so that scores must be comparable."""
        return self.kind == "ranking" or self.compute is ranking.auroc_estimates

    def is_improvement(self, difference: float) -> bool:
        """Whether a change by `difference` makes the metric better."""
        return difference > 0 if self.higher_is_better else difference < 0


_PREVALENCE = partial(MetricSpec, kind="prevalence", scope="prevalence")
_NET_BENEFIT = partial(
    MetricSpec,
    kind="image_mean",
    scope="outcome",
    minimum=-inf,
    in_outcomes=True,
    weights_images_equally=True,
    is_paired=True,
)
_SLOPE = partial(MetricSpec, kind="estimates", compute=calibration_estimates, scope="outcome",
                 minimum=-inf, maximum=inf)  # fmt: skip
_ODDS = partial(MetricSpec, kind="estimates", compute=equalized_odds, scope="attribute",
                higher_is_better=False)  # fmt: skip
_MEDIAN = partial(MetricSpec, kind="estimates", compute=confusion.grade_estimates,
                  weights_images_equally=True)  # fmt: skip
_macro = partial(partial, confusion.macro_average)  # rate of each class -> its mean
_weighted = partial(partial, confusion.weighted_average)
_SPECS = (
    MetricSpec("accuracy", "Accuracy", "confusion", confusion.accuracy, interval="proportion",
               weights_images_equally=True, in_summary=True, in_headline=True, is_paired=True,
               meaning="Fraction of the images whose predicted class is the label."),
    MetricSpec("balanced_accuracy", "Balanced accuracy", "confusion", _macro(confusion.recall),
               in_summary=True, is_paired=True,
               meaning="Mean of the recall of all classes: a rare class counts as much as a "
                       "frequent one."),
    MetricSpec("auroc", "AUROC", "estimates", ranking.auroc_estimates,
               scope="overall and outcome", in_summary=True, in_headline=True, in_outcomes=True,
               is_paired=True,
               meaning="Probability that an image with the class has a higher score than one "
                       "without it: 1 separates perfectly, 0.5 is chance. Without a class, "
                       "the mean over classes."),
    MetricSpec("average_precision", "Average precision", "ranking",
               ranking.average_precision_of_counts, scope="overall and class",
               perfect_bound=ranking.average_precision_bound,
               meaning="Area under the curve of precision and recall over all thresholds; a "
                       "random score has the frequency of the class."),
    MetricSpec("sensitivity_at_specificity_0.95", "Sensitivity at 95 % specificity", "ranking",
               ranking.sensitivity_of_counts, scope="overall and class",
               perfect_bound=lambda sensitivity, false_positive_rate, prevalence: sensitivity,
               meaning="Fraction of the images with the class that are found when 95 % of the"
                       " others are spared."),
    MetricSpec("f1_macro", "F1, macro", "confusion", _macro(confusion.f1), is_paired=True,
               meaning="Mean F1 of the classes."),
    MetricSpec("f1_weighted", "F1, weighted", "confusion", _weighted(confusion.f1),
               meaning="Mean F1 of the classes, each weighted by its number of images."),
    MetricSpec("precision_macro", "Precision, macro", "confusion", _macro(confusion.precision),
               meaning="Mean precision of the classes."),
    MetricSpec("precision_weighted", "Precision, weighted", "confusion",
               _weighted(confusion.precision),
               meaning="Mean precision of the classes, each weighted by its number of images."),
    MetricSpec("recall_macro", "Recall, macro", "confusion", _macro(confusion.recall),
               meaning="Mean recall of the classes, the same as balanced accuracy."),
    MetricSpec("recall_weighted", "Recall, weighted", "confusion", _weighted(confusion.recall),
               interval="proportion", weights_images_equally=True,
               meaning="Mean recall of the classes, each weighted by its number of images: "
                       "the same as accuracy."),
    MetricSpec("specificity_macro", "Specificity, macro", "confusion",
               _macro(confusion.specificity),
               meaning="Mean specificity of the classes."),
    MetricSpec("kappa", "Cohen's kappa", "confusion", confusion.kappa, minimum=-1.0,
               in_summary=True, is_paired=True,
               meaning="Agreement of predictions and labels beyond chance: 1 is perfect, 0 is"
                       " chance."),
    MetricSpec("kappa_quadratic", "Quadratic kappa", "confusion",
               partial(confusion.kappa, quadratic=True), minimum=-1.0, is_paired=True,
               meaning="Agreement beyond chance for ordered classes: an error counts by its "
                       "distance squared."),
    MetricSpec("grade_error", "Mean distance of grades", "estimates", confusion.grade_estimates,
               higher_is_better=False, maximum=inf, weights_images_equally=True,
               meaning="Mean distance of the predicted from the true grade, in grades."),
    MetricSpec("within_one_grade", "Within one grade", "estimates", confusion.grade_estimates,
               weights_images_equally=True,
               meaning="Fraction of the images whose predicted grade is the true one or next to "
                       "it."),
    _MEDIAN("median_accuracy", "Accuracy of the median grade",
            meaning="Accuracy if the median grade is predicted: the first one up to which the "
                    "probabilities sum to 0.5 or more."),
    _MEDIAN("median_kappa_quadratic", "Quadratic kappa of the median grade", minimum=-1.0,
            weights_images_equally=False,
            meaning="Quadratic kappa if the median grade is predicted."),
    _MEDIAN("median_grade_error", "Mean distance of the median grade", higher_is_better=False,
            maximum=inf, meaning="Mean distance of the median grade from the true one, in grades."),
    _MEDIAN("median_within_one_grade", "Median within one grade",
            meaning="Fraction of the images whose median grade is the true one or next to it."),
    MetricSpec("mcc", "MCC", "confusion", confusion.mcc, minimum=-1.0, is_paired=True,
               meaning="Matthews correlation coefficient of predictions and labels: 1 is "
                       "perfect, 0 is chance."),
    MetricSpec("nll", "NLL", "image_mean", calibration.nll, higher_is_better=False, maximum=inf,
               weights_images_equally=True, in_summary=True, in_headline=True, is_paired=True,
               meaning="Negative log-likelihood: the mean of -log p of the label. Confident "
                       "errors cost most."),
    MetricSpec("brier", "Brier score", "image_mean", calibration.brier, higher_is_better=False,
               maximum=2.0, weights_images_equally=True, is_paired=True,
               meaning="Mean squared distance of the probabilities from the label, between 0 "
                       "and 2."),
    MetricSpec("ece", "ECE", "calibration", calibration.ece_of_gaps, higher_is_better=False,
               interval="centered bootstrap", weights_images_equally=True, in_summary=True,
               is_paired=True,
               meaning="Expected calibration error: mean difference between the probability "
                       "of the predicted class and how often it is right, in bins of "
                       "probability."),
    MetricSpec("smooth_ece", "ECE, smooth", "smooth_calibration", calibration.smooth_ece_of_gaps,
               higher_is_better=False, interval="centered bootstrap", weights_images_equally=True,
               meaning="Expected calibration error with smoothing in place of bins."),
    MetricSpec("ece_classwise", "ECE, classwise", "classwise_calibration",
               calibration.classwise_ece_of_gaps, scope="overall and class", higher_is_better=False,
               interval="centered bootstrap", weights_images_equally=True, in_outcomes=True,
               meaning="Expected calibration error of the probability of each class, "
                       "predicted or not."),
    _SLOPE("calibration_slope", "Calibration slope", ideal=1.0, in_outcomes=True,
           meaning="Slope of a logistic regression of the outcome on the logit of its "
                   "probability: 1 is ideal, below 1 probabilities are too extreme."),
    _SLOPE("calibration_intercept", "Calibration intercept", ideal=0.0,
           meaning="Intercept of the same regression as the calibration slope: 0 is ideal."),
    _SLOPE("calibration_in_the_large", "Calibration in the large", ideal=0.0, in_outcomes=True,
           meaning="Shift of the logits that makes probabilities right on average: 0 is "
                   "ideal, below 0 they are too large."),
    MetricSpec("observed_minus_expected", "Observed minus expected", "image_mean",
               clinical.observed_minus_expected, scope="outcome", ideal=0.0, minimum=-1.0,
               weights_images_equally=True,
               meaning="Frequency of the outcome minus its mean probability: 0 is ideal."),
    _NET_BENEFIT("net_benefit", "Net benefit", compute=clinical.net_benefit,
                 meaning="Cases found per image, minus false alarms per image times the odds "
                         "of the threshold. Treating no one has 0."),
    _NET_BENEFIT("net_benefit_over_all", "Net benefit minus treating all",
                 compute=clinical.net_benefit_over_all,
                 meaning="Net benefit minus that of treating everyone."),
    MetricSpec("recall", "Recall", "confusion", confusion.recall, scope="class",
               interval="proportion", counted_images=lambda labels, predictions: labels,
               meaning="Fraction of the images with the class that are predicted as it.",
               also="sensitivity"),
    MetricSpec("precision", "Precision", "confusion", confusion.precision, scope="class",
               interval="proportion", counted_images=lambda labels, predictions: predictions,
               meaning="Fraction of the images predicted as the class that have it: positive "
                       "predictive value.",
               also="PPV"),
    MetricSpec("specificity", "Specificity", "confusion", confusion.specificity, scope="class",
               interval="proportion", counted_images=lambda labels, predictions: ~labels,
               meaning="Fraction of the images without the class that are not predicted as "
                       "it."),
    MetricSpec("npv", "NPV", "confusion", confusion.npv, scope="class", interval="proportion",
               counted_images=lambda labels, predictions: ~predictions,
               meaning="Negative predictive value: fraction of the images not predicted as "
                       "the class that do not have it."),
    MetricSpec("number_needed_to_refer", "Number needed to refer", "confusion",
               confusion.number_needed_to_refer, scope="class", higher_is_better=False,
               minimum=1.0, maximum=inf,
               meaning="Images predicted as the class per case found among them: 1 is best.",
               also="referred per case found"),
    _PREVALENCE("ppv_at_prevalence", "PPV at prevalence", compute=confusion.ppv_at_prevalence,
                meaning="Positive predictive value if this fraction of the patients had the "
                        "class."),
    _PREVALENCE("npv_at_prevalence", "NPV at prevalence", compute=confusion.npv_at_prevalence,
                meaning="Negative predictive value if this fraction of the patients had the "
                        "class."),
    MetricSpec("f1", "F1", "confusion", confusion.f1, scope="class",
               meaning="Harmonic mean of precision and recall."),
    MetricSpec("pairs", "Accuracy, mean of pairs", "estimates", confusion.pair_estimates,
               meaning="Accuracy between two classes, on the images of the two: the mean over"
                       " all pairs."),
    MetricSpec("pairs_gap", "Mean of pairs minus accuracy", "estimates", confusion.pair_estimates,
               minimum=-1.0,
               meaning="How much harder it is to choose among all classes than between two."),
    MetricSpec("pair", "Accuracy of a pair", "estimates", confusion.pair_estimates, scope="pair",
               meaning="Accuracy between two classes, on the images of the two."),
    _ODDS("tpr_gap", "Largest difference of sensitivity",
          meaning="Between any two groups of the attribute: 0 is ideal."),
    _ODDS("fpr_gap", "Largest difference of false positive rate",
          meaning="Between any two groups of the attribute, in 1 - specificity: 0 is ideal."),
)  # fmt: skip

METRICS: dict[str, MetricSpec] = {spec.name: spec for spec in _SPECS}


def metric_spec(name: str) -> MetricSpec:
    """The entry of a metric by its full name; ValueError, with the nearest names, if unknown."""
    _, base, class_names = _split(name)
    if base in METRICS and _allows_suffix(METRICS[base], class_names):
        return METRICS[base]
    nearest = get_close_matches(base, METRICS, n=3) or list(METRICS)
    raise ValueError(f"unknown metric {name!r}; did you mean {', '.join(nearest)}?")


def metric_label(name: str) -> str:
    """Label of a full name: `Recall, pneumonia` of `recall/pneumonia`, `AUROC by study`."""
    level, _, class_names = _split(name)
    spec = metric_spec(name)
    label = spec.label
    if spec.scope == "prevalence":
        class_names, _, prevalence = class_names.rpartition("/")
        label = f"{label} {prevalence}"
    of_class = f", {class_names.replace('/', ' vs. ')}" if class_names else ""
    return label + of_class + (f" by {level}" if level else "")


def in_registry_order(metrics: Mapping[str, Value]) -> dict[str, Value]:
    """Values by full name, in the order of the registry; names may not begin with a level."""
    order = list(METRICS)
    return dict(sorted(metrics.items(), key=lambda item: order.index(item[0].partition("/")[0])))


def monitor_mode(monitor: str) -> Literal["min", "max"]:
    """`max` if larger values of a logged metric such as `val/auroc` are better, else `min`."""
    name = monitor.partition("/")[2] or monitor
    if name.endswith("loss"):
        return "min"
    return "max" if metric_spec(name).higher_is_better else "min"


def matching_specs(pattern: str, level: str | None = None) -> list[MetricSpec]:
    """Entries that a name or pattern (`*`: any text) matches, at `level` or any level if None."""
    at_level, base, class_names = _split(pattern)
    if at_level and level is not None and at_level != level:
        return []
    specs = [spec for spec in METRICS.values() if fnmatchcase(spec.name, base)]
    return [spec for spec in specs if base.endswith("*") or _allows_suffix(spec, class_names)]


def named_metrics(text: str) -> list[MetricSpec]:
    """Entries whose label or other name is in a text, but not as a part of a longer such name."""
    names = {name.lower(): spec for spec in METRICS.values() for name in (spec.label, spec.also)}
    longest_first = "|".join(map(re.escape, sorted(filter(None, names), key=len, reverse=True)))
    matches = re.findall(rf"(?<!\w)(?:{longest_first})(?!\w)", text.lower())
    specs = [names[name] for name in matches]
    return [spec for spec in METRICS.values() if spec in specs]


def summary_metrics() -> list[str]:
    """Names of the metrics of main tables and of the terminal."""
    return [name for name, spec in METRICS.items() if spec.in_summary]


def headline_metrics() -> list[str]:
    """Names of the metrics with a column in tables of paired comparisons."""
    return [name for name, spec in METRICS.items() if spec.in_headline]


def outcome_metrics() -> list[str]:
    """Names of the metrics with a column in the table of classes and groups of classes."""
    return [name for name, spec in METRICS.items() if spec.in_outcomes]


def _split(name: str) -> tuple[str, str, str]:
    """Level or "", base name, and what follows it (class names) of a full name."""
    level, _, rest = name.partition("/")
    if level not in LEVELS:
        level, rest = "", name
    base, _, class_names = rest.partition("/")
    return level, base, class_names


def _allows_suffix(spec: MetricSpec, class_names: str) -> bool:
    """Whether a name may have the suffix `class_names`, as in `recall/melanoma`, or none ("")."""
    return spec.scope != "overall" if class_names else spec.scope.startswith("overall")
