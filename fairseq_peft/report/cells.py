"""Values of a row as the text of one cell. Accuracies are in per cent here."""

from __future__ import annotations

from fairseq_peft.scores import is_share


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def points(fraction: float) -> str:
    """Per cent with one decimal; of less than 0.05, its first digit that is not 0."""
    return f"{100 * fraction:.1f}" if fraction >= 0.0005 else f"{100 * fraction:.1g}"


def mean_sd(row: dict, of: str = "test_accuracy") -> str:
    mean, sd = row[f"{of}_mean"], row[f"{of}_sd"]
    if mean is None:
        return "-"
    return percent(mean) if sd is None else f"{percent(mean)} ± {100 * sd:.2f}"


def mcc(row: dict) -> str:
    """From -1 to 1, so not in per cent."""
    return plain_score(row, "test_mcc")


def plain_score(row: dict, of: str) -> str:
    """Not in per cent."""
    mean, sd = row[f"{of}_mean"], row[f"{of}_sd"]
    if mean is None:
        return "-"
    return f"{mean:.3f}" if sd is None else f"{mean:.3f} ± {sd:.3f}"


def score(metric: str | None, value: float | None) -> str:
    """Shares are in per cent; a loss is in nats, correlations are from -1 to 1."""
    if metric is None or value is None:
        return "-"
    return f"{100 * value:.2f}" if is_share(metric.split()[0]) else f"{value:.3f}"


def taken_for(row: dict) -> tuple[str, str]:
    """The wrong class that most of this class's rows were given, and their share in per cent."""
    wrong = {name: n for name, n in row["predicted_as"].items() if name != row["class"]}
    if not wrong:
        return "-", "-"
    name = max(wrong, key=wrong.get)
    return name, percent(wrong[name] / row["rows"])


def difference(row: dict, of: str = "difference_to_full") -> str:
    mean, low, high = (row[f"{of}_{part}"] for part in ("mean", "low", "high"))
    if mean is None:
        return "-"
    if low is None:
        return f"{100 * mean:+.2f}"
    return f"{100 * mean:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def p_value(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else "<0.0001"


def count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def share(row: dict) -> str:
    trainable, total = row["trainable_parameters"], row["total_parameters"]
    if not trainable or not total:
        return "-"
    return f"{100 * trainable / total:.2f}"


def learning_rate(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def size(value: float | None) -> str:
    """SI: 1 MB is 1,000,000 bytes."""
    if value is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            decimals = 0 if unit == "B" or value >= 99.95 else 1 if value >= 9.995 else 2
            return f"{value:.{decimals}f} {unit}"
        value /= 1000
    return f"{value:,.2f} TB"
