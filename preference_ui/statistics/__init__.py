"""How far the votes can be trusted: agreement, biases, rater reliability. NumPy only."""

from preference_ui.statistics.agreement import cohen_kappa, implied_accuracy, kendall_tau_b, krippendorff_alpha
from preference_ui.statistics.bradley_terry import Comparisons, RaterModel, fit_rater_model
from preference_ui.statistics.dawid_skene import DawidSkene, fit_dawid_skene
from preference_ui.statistics.intervals import Interval, binomial_test, ratio_interval, wilson_interval
from preference_ui.statistics.report import ProjectReport, RaterReport, project_report

__all__ = [
    "Comparisons",
    "DawidSkene",
    "Interval",
    "ProjectReport",
    "RaterModel",
    "RaterReport",
    "binomial_test",
    "cohen_kappa",
    "fit_dawid_skene",
    "fit_rater_model",
    "implied_accuracy",
    "kendall_tau_b",
    "krippendorff_alpha",
    "project_report",
    "ratio_interval",
    "wilson_interval",
]
