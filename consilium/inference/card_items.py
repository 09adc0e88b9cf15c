"""Items of a model card: those of CLAIM 2024 and TRIPOD+AI, in our words, with their functions.

Numbers are those of Tejani et al. 2024 (doi:10.1148/ryai.240300) and of Collins et al. 2024
(doi:10.1136/bmj-2023-078378). An item without a function can only be answered by a person.
"""

from collections.abc import Callable
from dataclasses import dataclass

from consilium.inference import card_contents as contents
from consilium.inference.card_contents import Artifacts

Fill = Callable[[Artifacts], str]


@dataclass(frozen=True)
class Item:
    """One item of a checklist: its numbers there, our wording, and the function with its text.

    The text is blank without a function, or if a file that the function reads is missing.
    """

    section: str
    claim: str  # its number in CLAIM 2024, "" if it has none
    tripod: str  # its numbers in TRIPOD+AI
    wording: str
    fill: Fill | None = None


_SECTIONS: dict[str, tuple[tuple[str, str, str, Fill | None], ...]] = {
    "Study": (
        ("1", "1", "Kind of method and what it predicts", contents.model_kind),
        ("2", "2", "Summary of design, methods, results and conclusions", None),
        ("3", "3a", "Clinical background, and the role the model is meant to have", None),
        ("", "3b", "Intended use, target population and users", contents.purpose),
        ("", "3c", "Known health inequalities between groups of patients", None),
        ("4", "4", "Aims and hypotheses", None),
        ("5", "", "Prospective or retrospective design", None),
        ("6", "", "Goal of the study, such as feasibility or non-inferiority", None),
    ),
    "Data": (
        ("7", "5a", "Sources of the data", contents.data_source),
        ("", "5b", "Dates of collection", None),
        ("", "6a", "Setting: hospitals, countries, level of care", None),
        ("8", "6b", "Who and what was eligible", None),
        ("", "6c", "Treatments received", None),
        ("9", "7", "Preprocessing of the images", contents.preprocessing),
        ("10", "", "How views, regions or series were selected", None),
        ("11", "", "De-identification", None),
        ("12", "11", "Unreadable, missing and contradictory data", contents.unusable_files),
        ("13", "", "Acquisition: devices and protocols", None),
        ("", "9a", "Why these inputs were chosen", None),
        ("", "9b", "What the inputs are, and when they are measured", None),
        ("", "9c", "Who assessed inputs that need judgment", None),
        ("19", "12a", "How samples were assigned to splits", contents.partitions),
        ("20", "", "What is disjoint between the splits", contents.split_overlaps),
        ("21", "10", "Reason for the sample size", None),
        ("35", "20a", "Numbers included and excluded", contents.exclusions),
        ("", "21", "Images of each class in each split", contents.class_counts),
        ("36", "20b", "Age, sex and clinical characteristics in each split", None),
    ),
    "Reference standard": (
        ("14", "8a", "Definition of the reference standard", None),
        ("15", "", "Why this reference standard", None),
        ("16", "8b", "Who annotated, with what qualification", None),
        ("17", "8c", "How the test set was annotated, and whether blinded", None),
        ("18", "", "Agreement of the annotators", None),
    ),
    "Model": (
        ("22", "22", "Networks, inputs and outputs", contents.network),
        ("", "15", "What the output is, and how it becomes a decision", contents.output),
        ("", "12b", "How inputs enter the model", contents.preprocessing),
        ("23", "", "Libraries", contents.libraries),
        ("24", "", "Initial weights", contents.network),
        ("27", "", "Ensemble", contents.ensembling),
    ),
    "Training": (
        ("25", "12c", "Loss, optimizer, augmentation and length", contents.training),
        ("26", "", "How the final weights were selected", contents.selection),
        ("", "13", "Treatment of class imbalance", contents.training),
    ),
    "Evaluation": (
        ("28", "12e", "Measures of performance", contents.measures),
        ("29", "", "Intervals", contents.intervals),
        ("30", "", "Robustness to other data", contents.external_shift),
        ("31", "", "Explanations and how well they point", contents.explanations),
        ("32", "", "Internal test", contents.performance),
        ("33", "", "External test", contents.external_test),
        ("", "12d", "How differences between hospitals were studied", None),
        ("", "12f", "Recalibration: what was tried", contents.recalibration),
        ("", "12g", "Code that computes predictions", contents.prediction_code),
        ("", "14", "Fairness: groups that were compared", contents.subgroups),
        ("", "16", "Differences between training and test data", contents.external_shift),
    ),
    "Results": (
        ("37", "23a", "Performance with intervals", contents.performance),
        ("38", "", "Performance for each class", contents.class_performance),
        ("39", "", "Errors", contents.errors),
        ("", "20c", "Distribution of the external data", contents.external_shift),
        ("", "23b", "Performance in groups and hospitals", contents.subgroups),
        ("", "24", "Results of recalibration", contents.recalibration),
    ),
    "Discussion and other information": (
        ("40", "26", "Limitations", None),
        ("41", "25", "Interpretation and implications for practice", None),
        ("", "27a", "What to do with poor or missing images in use", None),
        ("", "27b", "Whether users have to intervene, and their expertise", None),
        ("", "27c", "Next steps", None),
        ("34", "18d", "Registration", None),
        ("42", "18c", "Where the protocol is", None),
        ("43", "18e", "Availability of data and model", None),
        ("", "18f", "Availability of code", None),
        ("44", "18a", "Funding", None),
        ("", "18b", "Conflicts of interest", None),
        ("", "17", "Ethics approval and consent", None),
        ("", "19", "Involvement of patients and the public", None),
    ),
}
ITEMS = [Item(section, *row) for section, rows in _SECTIONS.items() for row in rows]
