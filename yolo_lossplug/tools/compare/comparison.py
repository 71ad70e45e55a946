# SPDX-License-Identifier: AGPL-3.0-or-later
"""A comparison: differences, verdicts and what they rest on, computed once for everything that shows them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Optional

from yolo_lossplug.terminal import printable
from yolo_lossplug.tools.compare import measures, significance
from yolo_lossplug.tools.compare.jobs import FAILED, FINISHED, Job
from yolo_lossplug.tools.compare.measures import Effect, Results, Spread, effect_of, label, ranked_effects
from yolo_lossplug.tools.compare.significance import BETTER, MIN_SEEDS, NO_VERDICT, NOISE, WORSE

FOLDERS = re.compile(r"(?<![\w.~:/\\-])(?:[A-Za-z]:[\\/]|/|\\\\)(?:[^\s,:;'\"`|/\\]+[\\/])+")
"""The folders of an absolute path, on Linux and Windows."""
RULE = (
    f'"Better" and "worse" need an interval that excludes 0, and at least {MIN_SEEDS} seeds. All else is '
    '"within noise", which does not prove equality. The primary metric alone has verdicts; others have '
    "intervals at 95 %."
)
AREAS = (
    "Small, medium and large have COCO's limits of 32² and 96² pixels, at the network's input. AP by size and class is "
    "COCO's, of 100 detections of each class and image."
)
NOTHING_LEARNT = "All metrics are 0: nothing has been learnt yet. Train longer."
UNDECIDED = {
    NOISE: "Within noise, which does not prove equality",
    NO_VERDICT: f"No verdict, which takes {MIN_SEEDS} common seeds",
}
SECONDS = "seconds"


@dataclass(frozen=True)
class Comparison:
    """What finished runs say of several arms, the first of which is the baseline.

    Attributes:
        arms: Names of the arms, in order, without folders of this machine.
        results: What came out of each finished run, by arm and seed.
        metric: Full name of the primary metric, which carries the verdict; empty without results.
        failed: Arm, seed and reason of each failed run.
        n_runs: Number of all runs.
        command: The command that makes the comparison.
        foot: Date, versions and the like.
    """

    arms: Sequence[str]
    results: Results
    metric: str
    failed: Sequence[tuple[str, int, str]] = ()
    n_runs: int = 0
    command: str = ""
    foot: Sequence[str] = ()

    @classmethod
    def of(cls, jobs: Sequence[Job], metric: str, command: str = "", foot: Sequence[str] = ()) -> Comparison:
        """Return the comparison of some runs, those of the baseline first, in a metric as `primary_of` takes it.

        Raises:
            LossPlugError: If the runs lack the metric.
        """
        jobs = portable(jobs)
        finished = {(job.arm, job.seed): job.read() for job in jobs if job.state == FINISHED}
        results = {key: result for key, result in finished.items() if result}
        failed = [(job.arm, job.seed, job.reason) for job in jobs if job.state == FAILED]
        arms, primary = list(dict.fromkeys(job.arm for job in jobs)), measures.primary_of(results, metric)
        return cls(arms, results, primary, failed, len(jobs), without_folders(command), foot)

    @property
    def baseline(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]

    @cached_property
    def metrics(self) -> list[str]:
        """Full names of all metrics, the main one first."""
        return measures.metrics_of(self.results)

    @cached_property
    def numbers(self) -> dict[tuple[str, int], dict[str, Optional[float]]]:
        """All numbers of each run: metrics in their order, losses of the last epoch, and seconds."""
        return {key: measures.run_numbers(result) for key, result in self.results.items()}

    @cached_property
    def spreads(self) -> dict[tuple[str, str], Spread]:
        """Mean and deviation over the seeds, by arm and measure: metrics, losses of the last epoch, and seconds."""
        values: dict[tuple[str, str], list[float]] = {}
        for (arm, _), numbers in self.numbers.items():
            for name, value in numbers.items():
                if value is not None:
                    values.setdefault((arm, name), []).append(value)
        return {key: Spread(*significance.mean_and_deviation(row), len(row)) for key, row in values.items()}

    @cached_property
    def measured_arms(self) -> list[str]:
        """The arms of which a run has finished."""
        return [arm for arm in self.arms if any(arm == other for other, _ in self.spreads)]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Names of the measures that any run has, as they are shown, by full name."""
        return {name: self.label(name) for _, name in self.spreads}

    def label(self, measure: str) -> str:
        """Return the name of a measure as it is shown."""
        return printable(label(measure, self.metrics))

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """Full names of the measures by `measures.group_of`, each in its order."""
        names = [name for name in dict.fromkeys((*self.metrics, *self.labels)) if name in self.labels]
        groups = ("mean", "size", "class", "test", "loss", SECONDS)
        return {group: [name for name in names if measures.group_of(name) == group] for group in groups}

    @cached_property
    def effects(self) -> list[Effect]:
        """Differences of the primary metric, in the order of the arms; none if nothing was learnt."""
        return [] if self.nothing or not self.metric else self.effects_of(self.metric, is_primary=True)

    @cached_property
    def other_effects(self) -> dict[str, list[Effect]]:
        """Differences of all other metrics, by metric: each for itself, with 95 % intervals and without a verdict."""
        return {name: self.effects_of(name) for name in self.metrics if name != self.metric}

    def effects_of(self, metric: str, is_primary: bool = False) -> list[Effect]:
        """Return the paired differences of all arms but the baseline in a metric, over the seeds that both have.

        Those of the primary metric have Holm's correction for all arms, and verdicts.
        """
        pairs = {arm: self.differences(arm, metric) for arm in self.arms[1:]}
        paired = {arm: values for arm, values in pairs.items() if values}
        if is_primary:
            decided = significance.holm(paired)
        else:
            decided = {arm: significance.decide(values)._replace(verdict="") for arm, values in paired.items()}
        return [effect_of(arm, metric, pairs[arm], decided.get(arm)) for arm in pairs]

    def differences(self, arm: str, metric: str) -> list[float]:
        """Return the differences of an arm from the baseline, for all seeds for which both have the metric."""
        of_baseline = self.values_of(self.baseline, metric)
        return [value - of_baseline[seed] for seed, value in self.values_of(arm, metric).items() if seed in of_baseline]

    def values_of(self, arm: str, metric: str) -> dict[int, float]:
        """Return a metric of an arm by seed; runs without it are left out."""
        values = {seed: numbers.get(metric) for (name, seed), numbers in self.numbers.items() if name == arm}
        return {seed: value for seed, value in values.items() if value is not None}

    @cached_property
    def noise_floor(self) -> Optional[Spread]:
        """The primary metric of the baseline over its seeds; None below two."""
        spread = self.spreads.get((self.baseline, self.metric))
        return spread if spread and spread.deviation is not None else None

    @cached_property
    def nothing(self) -> str:
        """A sentence if nothing can be compared; an empty one if something can."""
        if not self.results:
            return "No run has finished yet."
        if not any(spread.mean for (_, name), spread in self.spreads.items() if name in self.metrics):
            return NOTHING_LEARNT
        values = [spread.mean for (_, name), spread in self.spreads.items() if name == self.metric]
        state = f"{self.label(self.metric)} is {'0' if values else 'missing'}"
        return "" if any(values) else f"{state} in all runs: nothing can be compared in it."

    @cached_property
    def verdicts(self) -> list[str]:
        """The conclusion, a sentence for each verdict, the decided ones first and the best of them first of all."""
        ranked = ranked_effects(self.effects)
        if self.nothing or not ranked:
            return [self.nothing or "Only one loss has run, and there is nothing to compare it with."]
        sentences = [self._decided(effect) for effect in ranked if effect.verdict in (BETTER, WORSE)]
        for verdict, words in UNDECIDED.items():
            names = [self._named(effect) for effect in ranked if effect.verdict == verdict]
            sentences += [f"{words}: {', '.join(names)}."] if names else []
        return sentences

    def _decided(self, effect: Effect) -> str:
        measure, seeds = self.label(effect.metric), self._survivors(effect) or f"{effect.seeds} seeds"
        return (
            f"`{effect.arm}` is {effect.verdict} than `{self.baseline}` in {measure}: {effect.mean:+.4f} "
            f"({effect.low:+.4f} to {effect.high:+.4f}, {seeds})."
        )

    def _named(self, effect: Effect) -> str:
        survivors = self._survivors(effect)
        return f"`{effect.arm}` ({survivors})" if survivors else f"`{effect.arm}`"

    def _survivors(self, effect: Effect) -> str:
        """Return which seeds a verdict rests on, if others have failed: it holds for the survivors alone."""
        lost = {seed for arm, seed, _ in self.failed if arm in (effect.arm, self.baseline)}
        return f"in the {effect.seeds} of {effect.seeds + len(lost)} seeds that did not fail" if lost else ""

    @cached_property
    def notes(self) -> list[str]:
        """What the verdicts rest on: the rule, its correction, power, gains, sizes and versions."""
        seeds = [effect.seeds for effect in self.effects if effect.level is not None]
        fewest, versions = min(seeds, default=5), sorted({*self._recorded("versions")})
        holm = (
            f"{len(seeds)} losses are compared with one: Holm's correction keeps the chance of any wrong verdict "
            "at 5 %, and each interval is printed at the level that decided."
        )
        notes = [
            (RULE, self.effects),
            (holm, len(seeds) > 1),
            (f"{fewest} seeds can show large differences only; 5 or more show smaller ones.", fewest < 5),
            *((sentence, True) for sentence in self._gains()),
            (AREAS, self._recorded("average_precision")),
            *((sentence, True) for sentence in self.older),
            (f"Not all runs were made with the same versions: {'; '.join(versions)}.", len(versions) > 1),
        ]
        return [sentence for sentence, is_said in notes if is_said]

    def _recorded(self, key: str) -> list[Any]:
        """Return what the runs have recorded of themselves; those of an earlier version may lack it."""
        return [result[key] for result in self.results.values() if result.get(key)]

    def _gains(self) -> list[str]:
        """Return which gains the runs had, one sentence where all had the same."""
        of_arms = {
            arm: ", ".join(f"{key}={value:g}" for key, value in result["gains"].items())
            for (arm, _), result in self.results.items()
            if result.get("gains")
        }
        if len({*of_arms.values()}) == 1:
            gains = next(iter(of_arms.values()))
            return [f"All runs had the gains {gains}; they were not matched to the scale of a loss."]
        return [f"`{arm}` ran with the gains {of_arms[arm]}." for arm in self.arms if arm in of_arms]

    @cached_property
    def older(self) -> list[str]:
        """Which runs were made before AP by size and class was measured, one sentence if there are any."""
        names = [f"`{a}` seed {seed}" for (a, seed), run in self.results.items() if "average_precision" not in run]
        return [f"No AP by size and class, because an earlier version made them: {', '.join(names)}."] if names else []

    @cached_property
    def about(self) -> list[str]:
        """Hardware of the runs and size of their data, a line for each that is recorded."""
        first = {"train": self._recorded("train")[:1], "val": self._recorded("data")[:1]}
        data = [f"{split} {_size(size)}" for split, sizes in first.items() for size in sizes if size.get("images")]
        lines = {"Hardware": sorted({*map(str, self._recorded("hardware"))}), "Data": data}
        return [f"{name}: {'; '.join(words)}" for name, words in lines.items() if words]

    @property
    def state(self) -> str:
        """How many runs have finished."""
        return f"{len(self.results)} of {self.n_runs} runs finished."


def without_folders(text: str) -> str:
    r"""Return a text with the bare names of files in place of their absolute paths, and without control characters.

    >>> without_folders("loss=ciou,/home/me/losses.py:mine data=C:\\sets\\my.yaml")
    'loss=ciou,losses.py:mine data=my.yaml'
    >>> without_folders("n/a, val/box_loss, https://a.org/b/c, ./own/losses.py")
    'n/a, val/box_loss, https://a.org/b/c, ./own/losses.py'
    """
    return FOLDERS.sub("", printable(text))


def portable(jobs: Sequence[Job]) -> list[Job]:
    """Return copies of runs whose names and reasons hold no folder; names that would be equal then stay as they are."""
    short = {job.arm: without_folders(job.arm).replace("`", "'") for job in jobs}  # names are shown as code
    names = short if len({*short.values()}) == len(short) else {}
    return [replace(job, arm=names.get(job.arm, job.arm), reason=without_folders(job.reason)) for job in jobs]


def _size(size: Mapping[str, Any]) -> str:
    """Return numbers of images and objects, of these by size where they are counted."""
    objects = f", {size['objects']} objects" if "objects" in size else ""
    by_size = ", ".join(f"{size[name]} {name}" for name in ("small", "medium", "large") if name in size)
    return f"{size['images']} images{objects}" + (f" ({by_size})" if by_size else "")
