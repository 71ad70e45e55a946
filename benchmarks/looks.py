# SPDX-License-Identifier: AGPL-3.0-or-later
"""Simulate what verdicts of `lossplug compare` are worth if one looks at them: python benchmarks/looks.py.

It prints, as Markdown, how often verdicts are wrong under several habits, with differences that are normal and with
those of the stored runs, how often true differences are shown and after how many seeds, and what `race=True` saves.
"""

import sys

import numpy as np
from problems import PROBLEMS, comparison_of

from yolo_lossplug.tools.compare.sequential import RACE_LEVEL, levels
from yolo_lossplug.tools.compare.significance import LEVEL, MIN_SEEDS, t_quantile

PLANNED, ARMS = 10, 5
"""Seeds of the plan, and arms beside the baseline."""
EFFECTS = (0.5, 1.0, 1.5, 2.0)
"""True differences, in standard deviations of the paired differences."""


def main(draws=100_000):
    """Print the tables."""
    draw = np.random.default_rng(0).standard_normal
    print(f"`python benchmarks/looks.py draws={draws}`, with {PLANNED} planned seeds where nothing else is said.")
    print("Differences are in standard deviations of the paired differences; errors of one arm to 0.04 %.\n")
    print("Comparisons with a wrong verdict, where nothing differs:\n")
    print_table(["habit", "tested at 5 % each time", "`lossplug compare`"], wrong_verdicts(draw, draws))
    print("\nTrue differences that are shown, and seeds of an arm at its verdict, or at the end of the plan:\n")
    print_table(["planned seeds", "difference", "one look", "a look after each seed", "seeds"], power(draw, draws))
    print(f"\n`race=True`, {ARMS} arms, of which one differs; runs of all arms and the baseline, of those planned:\n")
    header = ["difference", "runs", "shown", "shown without race", "wrong verdicts", "stopped though better"]
    print_table(header, race(draw, draws))


def wrong_verdicts(draw, draws):
    """Return a row for every habit: how often any verdict is wrong, naively and as `lossplug compare` tests."""
    noise = paired(draw, draws, ARMS, PLANNED)
    first, stored = paired(draw, 4 * draws, 1, PLANNED), resampled(4 * draws)[:, None]
    three_then_all = (MIN_SEEDS, PLANNED)
    rows = []
    for habit, values, looks in (
        (f"one look at {PLANNED} seeds", first, (PLANNED,)),
        ("three seeds, then ten", first, three_then_all),
        ("a look after each seed", first, None),
        (f"a look after each seed, {ARMS} arms", noise, None),
        (f"one look at {PLANNED} seeds, stored runs", stored, (PLANNED,)),
        ("a look after each seed, stored runs", stored, None),
    ):
        rows.append([habit, any_verdict(values, looks, naive=True), any_verdict(values, looks)])
    # Naively, one more arm is trained where none of those so far has a verdict, and Holm corrects for those there are.
    naive = np.any([is_shown(noise[:, :k], None, True).any(1) for k in range(1, ARMS + 1)], 0).mean()
    rows.append([f"a look after each seed, arms added one by one up to {ARMS}", naive, any_verdict(noise, None)])
    return [[habit, *(f"{100 * share:.1f} %" for share in shares)] for habit, *shares in rows]


def power(draw, draws):
    """Return a row for every plan and true difference: power of one look and of all, and seeds at the verdict."""
    rows = []
    for planned in (5, PLANNED, 20):
        noise = paired(draw, draws, 1, planned)
        for effect in EFFECTS:
            at = first_look(noise + effect, None)[:, 0]
            shares = any_verdict(noise + effect, (planned,), naive=True), (at <= planned).mean()
            rows.append(
                [planned, effect, *(f"{share:.2f}" for share in shares), f"{np.minimum(at, planned).mean():.1f}"]
            )
    return rows


def race(draw, draws):
    """Return a row for every true difference of one of several arms: what ending the hopeless ones saves and costs."""
    rows = []
    for effect in (0.0, *EFFECTS):
        values = paired(draw, draws, ARMS, PLANNED)
        values[:, 0] += effect
        at, ends = first_look(values, None), statistics(values)[1]
        hopeless = np.full(at.shape, PLANNED + 1)
        for n in range(PLANNED, MIN_SEEDS - 1, -1):
            hopeless[ends[..., n - 1] < 1] = n
        shown = at <= np.minimum(hopeless, PLANNED)
        end = np.minimum(np.minimum(at, hopeless), PLANNED)
        runs = (end.sum(1) + end.max(1)).mean() / (PLANNED * (ARMS + 1))
        wrong = shown[:, 1 if effect else 0 :].any(1).mean()
        lost = "" if effect == 0 else f"{(hopeless < np.minimum(at, PLANNED))[:, 0].mean():.3f}"
        powers = ["", ""] if effect == 0 else [f"{s[:, 0].mean():.2f}" for s in (shown, at <= PLANNED)]
        rows.append([effect, f"{100 * runs:.0f} %", *powers, f"{100 * wrong:.1f} %", lost])
    return rows


def paired(draw, draws, arms, seeds):
    """Return differences (draws, arms, seeds) of arms from a baseline, with mean 0 and deviation 1."""
    return (draw((draws, arms, seeds)) - draw((draws, 1, seeds))) / np.sqrt(2)


def resampled(draws):
    """Return differences (draws, seeds) between stored runs drawn at random, each less the mean of its arm.

    The scale is that of a problem: five seeds of an arm would bound what is divided by their own deviation.
    """
    runs = []
    for comparison in map(comparison_of, PROBLEMS):
        arms = [[*comparison.values_of(arm, comparison.metric).values()] for arm in comparison.arms]
        residuals = np.array(arms) - np.mean(arms, 1, keepdims=True)
        runs.append(residuals.ravel() / residuals.std())
    return np.subtract(*np.random.default_rng(1).choice(np.concatenate(runs), (2, draws, PLANNED)))


def statistics(values):
    """Return |t|, and the upper end of the interval of a race in deviations, after every seed (draws, arms, seeds)."""
    n = np.arange(1, values.shape[-1] + 1)
    mean = values.cumsum(-1) / n
    with np.errstate(all="ignore"):  # a single seed has no deviation
        deviation = np.sqrt(((values**2).cumsum(-1) - n * mean**2) / (n - 1))
        quantiles = [np.inf, *(t_quantile((1 + RACE_LEVEL) / 2, k - 1) for k in n[1:])]
        return abs(mean / deviation) * np.sqrt(n), mean / deviation + quantiles / np.sqrt(n)


def first_look(values, looks, naive=False):
    """Return the seeds at the verdict of each arm (draws, arms) with Holm's correction; one more than all if none."""
    t, planned, arms = statistics(values)[0], values.shape[-1], values.shape[1]
    at = np.full(t.shape[:2], planned + 1)
    for n in looks or range(MIN_SEEDS, planned + 1):
        for _ in range(arms):  # each verdict raises the level of the others
            left = arms - (at <= planned).sum(1)
            totals = [(1 - LEVEL) / max(k, 1) for k in range(arms + 1)]
            tested = [total if naive else levels(planned, total)[n] for total in totals]
            limits = np.array([t_quantile(1 - level / 2, n - 1) for level in tested])
            at[(at > planned) & (t[..., n - 1] > limits[left][:, None])] = n
    return at


def is_shown(values, looks, naive=False):
    """Return which arms get a verdict (draws, arms)."""
    return first_look(values, looks, naive) <= values.shape[-1]


def any_verdict(values, looks, naive=False):
    """Return the share of comparisons in which any arm gets a verdict."""
    return is_shown(values, looks, naive).any(1).mean()


def print_table(header, rows):
    """Print a Markdown table."""
    for cells in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main(*(int(word.removeprefix("draws=")) for word in sys.argv[1:]))
