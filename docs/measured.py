# SPDX-License-Identifier: AGPL-3.0-or-later
"""What docs/troubles.md and the table of docs/choose.md say of stored comparisons: tables, sentences and pictures.

Everything is made from the files of `benchmarks/results/troubles` by the functions behind `lossplug compare`, so that
no page can say anything else than the runs. Advice is that of the table in docs/choose.md.
"""

import json
import re
from functools import cached_property
from pathlib import Path

import ultralytics.cfg  # noqa: F401  (before the package's tools, so that the plugin is enabled here as in a training)
from yolo_lossplug.tools.compare.summary import read_table

from yolo_lossplug import charts
from yolo_lossplug.catalogue import table
from yolo_lossplug.tools.compare import answer, measures, significance, verdict
from yolo_lossplug.tools.compare import plots as compare_plots
from yolo_lossplug.tools.compare.jobs import FINISHED
from yolo_lossplug.tools.compare.significance import BETTER, NOISE, WORSE
from yolo_lossplug.tools.inspect.advice import RARE

DOCS = Path(__file__).parent
STORED = DOCS.parent / "benchmarks" / "results" / "troubles"
ADVICE = {
    "plain": "nothing in particular",
    "tiny": "very small objects",
    "crowds": "crowds",
    "rare": "rare classes",
    "labels": "noisy labels",
    "thin": "elongated objects",
}
"""What the row of docs/choose.md says that advises on a trouble."""
MARKS = {BETTER: "▲", WORSE: "▼", NOISE: "○"}
WORDS = {
    "en": {
        **{one: one for one in MARKS},
        **{"unmeasured": "not measured", "none": "no", "all": "all ", "comma": ", ", "join": "; "},
        "entry": "{} ([runs]({}))",
    },
    "zh": {
        **{BETTER: "更好", NOISE: "在噪声范围内", WORSE: "更差"},
        **{"unmeasured": "未测量", "none": "无", "all": "均", "comma": "、", "join": "；"},
        "entry": "{}（[结果]({})）",
    },
}
"""What a table of advice says of a measurement, by language."""
CONFIRMED = {BETTER: "confirmed for", WORSE: "contradicted for", NOISE: "neither confirmed nor contradicted for"}
NUMBER = re.compile(r"[-+]?[\d.]+|\[.*\]")
CURVES = "troubles-curves.png"
CURVE_WIDTH, CURVE_HEIGHT = 5.8, 3.9
"""Inches of the curves: as wide as a forest plot."""


class Trouble:
    """The comparison of one trouble.

    Attributes:
        name: Its name.
        about: What was compared, on which data.
        arms: Keys by name of the arm, the baseline first.
        rows: Rows of its table, one for each run.
        results: What came out of each finished run, by arm and seed.
        metric: Full name of the primary metric.
    """

    def __init__(self, name, about, rows):
        self.name, self.about, self.rows, self.arms = name, about, rows, about["arms"]
        finished = [row for row in rows if row["state"] == FINISHED]
        self.results = {(row["loss"], int(row["seed"])): _result(row) for row in finished}
        self.metric = measures.resolve(about["metric"], measures.metrics_of(self.results))

    @property
    def title(self):
        """Its title."""
        return self.about["title"]

    @property
    def baseline(self):
        """Name of the arm that the others are compared with."""
        return next(iter(self.arms))

    @cached_property
    def effects(self):
        """Differences of the primary metric, with verdicts."""
        return self.differences(self.metric)

    def differences(self, metric):
        """Return the differences of a metric; those of another than the primary one have no verdict."""
        found = verdict.effects(self.results, self.baseline, metric, metric == self.metric)
        return sorted((one for one in found if one.mean is not None), key=lambda one: [*self.arms].index(one.arm))

    @property
    def floor(self):
        """Standard deviation of the baseline over its seeds."""
        return verdict.noise_floor(self.results, self.baseline, self.metric)

    @property
    def rare_classes(self):
        """Metrics of the classes that count as rare in the training data."""
        counts = self.about["objects"]["train objects per class"]
        return [f"AP_{name}" for name, count in counts.items() if count * RARE <= max(counts.values())]


def _result(row):
    """Return a row of a table of runs as the result that it was made from, without folders."""
    values = {name: float(value) if value else None for name, value in row.items() if name not in _NAMES}
    return {
        "metrics": {name: value for name, value in values.items() if name.startswith(measures.METRICS)},
        "average_precision": {name: value for name, value in values.items() if name.startswith("AP_")},
        "losses": {name: value for name, value in values.items() if not measures.is_metric(name)},
    }


_NAMES = ("loss", "seed", "state", "reason", "seconds")


def read(folder=STORED):
    """Return what all runs have in common, and the troubles."""
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    return about, [Trouble(name, one, read_table(folder / f"{name}.csv")) for name, one in about["troubles"].items()]


def advised(page=None):
    """Return the keys that docs/choose.md advises, by what a reader has, as texts such as ``loss=nwd``."""
    text = page or (DOCS / "choose.md").read_text(encoding="utf-8")
    lines = text.partition("| You have |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {have: re.findall(r"`([^`]+)`", tried) for have, tried, *_ in cells}


def advice_for(trouble, page=None):
    """Return the keys that are advised for a trouble."""
    (found,) = (keys for have, keys in advised(page).items() if ADVICE[trouble.name] in have)
    return found


def arm_of(trouble, advice):
    """Return the arm with the keys of a piece of advice, None if there is none. Numbers need not be the same."""
    asked = dict(word.split("=", 1) for word in advice.split())

    def fits(keys):
        return all(key in keys and (NUMBER.fullmatch(value) or keys[key] == value) for key, value in asked.items())

    return next((arm for arm, keys in trouble.arms.items() if fits(keys)), None)


def keys_of(keys):
    """Return keys as a command has them.

    >>> keys_of({"cls_weights": [1.0, 1.0, 2.5], "cls": 5.0})
    'cls_weights=[1,1,2.5] cls=5'
    """
    return " ".join(f"{key}={_value(value)}" for key, value in keys.items())


def _value(value):
    if isinstance(value, list):
        return f"[{','.join(map(_value, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def code(trouble, arm):
    """Return the keys of an arm as code."""
    return f"`{keys_of(trouble.arms[arm])}`"


def said(effect):
    """Return verdict, difference and interval in words."""
    if effect.level is None:
        return f"no verdict, {' '.join(answer.difference(effect).split())}"
    return f"{effect.verdict}, {effect.mean:+.4f} ({effect.low:+.4f} to {effect.high:+.4f})"


def summary(troubles):
    """Return the table of all verdicts: a row for each trouble, and what was better, undecided or worse."""
    head = " | ".join(["trouble", *(f"{MARKS[one]} {one}" for one in MARKS)])
    rows = [[f"[{trouble.title}](#{anchor(trouble)})", *(_with(trouble, one) for one in MARKS)] for trouble in troubles]
    return table(head, rows)


def _with(trouble, decision):
    """Return the arms with a verdict, with their differences."""
    shown = [effect for effect in trouble.effects if effect.verdict == decision]
    return "<br>".join(f"{code(trouble, effect.arm)} {effect.mean:+.4f}" for effect in shown)


def anchor(trouble):
    """Return the anchor of a trouble's section, whose heading is its title."""
    return trouble.title.lower().replace(" ", "-")


def counted(troubles):
    """Return a sentence on how many verdicts there are of each kind."""
    found = [effect.verdict for trouble in troubles for effect in trouble.effects]
    return (
        f"Of {len(found)} comparisons with the stock loss, {found.count(BETTER)} came out better, "
        f"{found.count(WORSE)} worse, and {found.count(NOISE)} within noise."
    )


def differences(trouble):
    """Return the table of a trouble: means, differences, verdicts, power, and AP by size and of rare classes."""
    name = measures.label(trouble.metric)
    parts = [part for part in (*measures.SIZES, *trouble.rare_classes) if _has(trouble, part)]
    others = {part: {one.arm: one for one in trouble.differences(part)} for part in parts}
    head = ["keys", name, "difference", "verdict", "interval", "level", "detectable", *parts]
    stock = [code(trouble, trouble.baseline), _spread(trouble, trouble.baseline), "", "stock"]
    rows = [
        [
            code(trouble, effect.arm),
            _spread(trouble, effect.arm),
            f"{effect.mean:+.4f}",
            f"{MARKS.get(effect.verdict, '')} {effect.verdict}",
            *_interval(effect),
            "" if effect.smallest is None else f"{effect.smallest:.4f}",
            *(_difference(others[part].get(effect.arm)) for part in parts),
        ]
        for effect in trouble.effects
    ]
    return table(" | ".join(head), [[*stock, *[""] * (len(head) - len(stock))], *rows])


def _has(trouble, metric):
    return bool(verdict.values_of(trouble.results, trouble.baseline, metric))


def _spread(trouble, arm):
    values = list(verdict.values_of(trouble.results, arm, trouble.metric).values())
    mean, deviation = significance.mean_and_deviation(values)
    return f"{mean:.4f}" + ("" if deviation is None else f" ± {deviation:.4f}")


def _interval(effect):
    if effect.level is None:
        return "none", ""
    return f"{effect.low:+.4f} to {effect.high:+.4f}", f"{100 * effect.level:.4g} %"


def _difference(effect):
    return "" if effect is None else f"{effect.mean:+.4f}"


def reading(trouble, page=None):
    """Return what the comparison of a trouble says of the advice, in plain sentences."""
    tried, besides, unmeasured = _by_advice(trouble, page)
    says = [f"Advice says {_listed([f'`{text}`' for text in advice_for(trouble, page)])}"]
    says[0] += f"; here {_told(trouble, tried)}." if tried else "."
    says += [f"Not measured: {_listed([f'`{text}`' for text in unmeasured])}."] if unmeasured else []
    says += [f"Tried besides: {_told(trouble, besides)}."] if besides else []
    return " ".join([f"**{verdict_of(trouble, tried, besides)}**", *says])


def _by_advice(trouble, page):
    """Return the differences of arms that are advised, those of the others, and the advice without an arm."""
    asked = {text: arm_of(trouble, text) for text in advice_for(trouble, page)}
    tried = [one for one in trouble.effects if one.arm in asked.values()]
    besides = [one for one in trouble.effects if one not in tried]
    return tried, besides, [text for text, arm in asked.items() if arm is None]


def _told(trouble, effects):
    return "; ".join(f"{code(trouble, one.arm)} is {said(one)}" for one in effects).replace(" is no ", " has no ")


def verdict_of(trouble, tried, besides):
    """Return the conclusion: which advice the runs have confirmed or contradicted, and what else they have shown."""
    if not [effect for effect in trouble.effects if effect.verdict in (BETTER, WORSE)]:
        return f"Nothing was shown to help or to harm{', the advice included' if tried else ''}."
    groups = {one: [code(trouble, effect.arm) for effect in tried if effect.verdict == one] for one in CONFIRMED}
    parts = [f"{CONFIRMED[one]} {_listed(arms)}" for one, arms in groups.items() if arms]
    advice = f"The advice is {', '.join(parts)}" if parts else "The advice is to change nothing"
    rest = [f"{code(trouble, one.arm)} is {one.verdict}" for one in besides if one.verdict in (BETTER, WORSE)]
    return f"{advice}; of what was tried besides, {_listed(rest)}." if rest else f"{advice}."


def _listed(words):
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def noise(trouble):
    """Return a paragraph on the noise floor, and on what the seeds could have shown."""
    seeds = len(verdict.values_of(trouble.results, trouble.baseline, trouble.metric))
    name = measures.label(trouble.metric)
    text = f"Noise floor, grey in the figure: {name} of stock deviates by {trouble.floor:.4f} over {seeds} seeds."
    smallest = [effect.smallest for effect in trouble.effects if effect.smallest is not None]
    if smallest:
        text += (
            f" Four times in five, these seeds show a true difference of {min(smallest):.4f} "
            f"(the steadiest comparison) to {max(smallest):.4f}; a smaller one can be there unseen."
        )
    failed = len(trouble.rows) - len(trouble.results)
    return text + (f" {failed} of {len(trouble.rows)} runs failed, and are left out." if failed else "")


def rare(trouble):
    """Return a paragraph on the AP of classes that are rare in training, empty without any."""
    texts = []
    for metric in trouble.rare_classes:
        told = [f"{code(trouble, e.arm)} {e.mean:+.4f}{_ends(e)}" for e in trouble.differences(metric)]
        texts.append(
            f"{metric}, of the rare class alone, differs by {'; '.join(told)}. Each interval is for itself, at 95 %."
        )
    return " ".join(texts)


def _ends(effect):
    return "" if effect.low is None else f" ({effect.low:+.4f} to {effect.high:+.4f})"


def data(trouble):
    """Return a sentence on the drawn data."""
    has = trouble.about["objects"]
    classes = ", ".join(f"{count} {name}" for name, count in has["train objects per class"].items())
    return (
        f"`{trouble.about['data']}`: {has['train images']} images with {has['train objects']} objects for training "
        f"({classes}), {has['val images']} with {has['val objects']} for validation; medians are "
        f"{has['median objects per image']:g} objects an image, sides of {has['median side']:g} pixels "
        f"({has['smallest side']:g} to {has['largest side']:g}), and {has['median elongation']:g} for the longer side "
        "over the shorter one."
    )


def commands(trouble):
    """Return the command that repeats the comparison, and the same for other data."""
    arms = ",".join(f"{{{','.join(f'{k!r}:{_word(v)}' for k, v in keys.items())}}}" for keys in trouble.arms.values())
    own = f'lossplug compare data=yours.yaml model=yolov8n.pt arms="[{arms}]" seeds=5 epochs=100'
    return f"```bash\n{trouble.about['command']}\n{own}\n```"


def _word(value):
    return repr(value) if isinstance(value, str) else _value(value)


def section(trouble, page=None):
    """Return what the page says of a trouble, with its picture."""
    shown = "; ".join(f"{effect.arm} {said(effect)}" for effect in trouble.effects)
    file = f"pictures/{picture_of(trouble)}"
    picture = f"[![{trouble.title}, {measures.label(trouble.metric)}: {shown}]({file})]({file})"
    numbers = f'<div class="measured" markdown>\n\n{differences(trouble)}\n</div>'
    words = [noise(trouble), rare(trouble), data(trouble), commands(trouble)]
    return "\n\n".join(filter(None, [reading(trouble, page), picture, numbers, *words]))


def picture_of(trouble):
    """Return the name of a trouble's picture."""
    return f"troubles-{trouble.name}.png"


def made(about):
    """Return the curves that decided the length of all runs, and how these were made."""
    alt = f"mAP50 of the stock loss by epoch on each trouble, with a mark at {about['common']['epochs']} epochs"
    first, last = about["seeds"][0], about["seeds"][-1]
    return (
        f"[![{alt}](pictures/{CURVES})](pictures/{CURVES})\n\n"
        f"{about['date']} · {about['versions']} · {about['hardware']} · model `{about['model']}` · "
        f"seeds {first} to {last} · `{keys_of(about['common'])}`"
    )


def cell(trouble, language="en", page=None):
    """Return what a table of advice says of the measurement of a trouble, without its link."""
    words = WORDS[language]
    verdicts = {effect.arm: words[effect.verdict] for effect in trouble.effects}
    asked = {f"`{text}`": arm_of(trouble, text) for text in advice_for(trouble, page)}
    told = {text: verdicts.get(arm, words["unmeasured"]) for text, arm in asked.items() if arm != trouble.baseline}
    told = told or {code(trouble, arm): one for arm, one in verdicts.items()}
    if len(set(told.values())) == 1:
        return (words["all"] if len(told) > 1 else "") + next(iter(told.values()))
    groups = {one: [text for text, other in told.items() if other == one] for one in told.values()}
    return words["join"].join(f"{words['comma'].join(texts)} {one}" for one, texts in groups.items())


def entry(trouble, language, file):
    """Return the cell of a file with a table of advice, docs/choose.md, README or their translations."""
    page = DOCS.parent / file.replace("zh/", "").replace(".zh-CN", "")
    up = {"docs/choose.md": "", "docs/zh/choose.md": "../"}.get(file, "docs/")
    told, link = cell(trouble, language, page.read_text(encoding="utf-8")), f"{up}troubles.md#{anchor(trouble)}"
    return WORDS[language]["entry"].format(told, link)


def cited(trouble, arm):
    """Return what advice of `lossplug inspect` has to say of the measurement of an arm."""
    (effect,) = (one for one in trouble.effects if one.arm == arm)
    seeds, name = len(verdict.values_of(trouble.results, arm, trouble.metric)), measures.label(trouble.metric)
    keys = keys_of(trouble.arms[arm])
    return f"{keys} on drawn data, {seeds} seeds: {effect.verdict}, {effect.mean:+.4f} {name} (docs/troubles.md)"


def draw(about, troubles, folder, stored=STORED):
    """Draw the pictures of the page, and return their files by name."""
    files = {}
    for trouble in troubles:
        file = folder / picture_of(trouble)
        compare_plots.draw_forest(trouble.effects, trouble.baseline, file, measures.label, trouble.floor)
        files[file.name] = file
    file = folder / CURVES
    titles = {trouble.name: trouble.title for trouble in troubles}
    draw_curves(read_table(stored / "stock_curves.csv"), titles, about["common"]["epochs"], file)
    return {**files, file.name: file}


def draw_curves(rows, titles, epochs, file):
    """Draw mAP50 of the stock loss by epoch, a line for each trouble, and mark the number of epochs of the runs."""
    figure, axes = charts.figure(1, 1, CURVE_WIDTH, CURVE_HEIGHT)
    axis = axes[0, 0]
    for (name, title), style in zip(titles.items(), charts.styles()):
        curve = [(int(row["epoch"]), float(row["mAP50"])) for row in rows if row["trouble"] == name]
        axis.plot(*zip(*curve), label=title, markevery=max(1, len(curve) // 8), **style)
    axis.axvline(epochs, color="#444444", linewidth=1, linestyle=":")
    axis.text(
        epochs, 1.01, f"{epochs} epochs", ha="center", va="bottom", fontsize=9, transform=axis.get_xaxis_transform()
    )
    axis.set_xlabel("epoch")
    axis.set_ylabel("mAP50 of the stock loss")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    charts.legend_below(figure, axis, 3)
    return charts.save(figure, file)
