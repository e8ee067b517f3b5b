"""From rows to pages: the tables between the marks of docs/, and the figures in docs/figures. Rows are all it reads.

Called by __main__ after a study has run, and by a test that the pages say what the rows say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from studies import adaptation_tables, denoising_tables, reward_models, sandbox_check, smollm_tables
from studies.figures import gold_over_kl
from studies.rows import Row, group_by_arm, read_rows
from studies.statistics import KL_LEVELS, t_interval
from studies.study import HERE, Study
from studies.tables import (
    curve_over_steps_table,
    curves_at_kl_table,
    markdown_table,
    matched_kl_table,
    replace_block,
)

PROJECT = HERE.parent
AT_THE_END = ("gold/correct", "gold/cover", "gold/polite", "gold/brief", "gold/safe", "gold/fluent", "violations")
Arms = Mapping[str, Sequence[Row]]


def render(study: Study) -> str:
    """Writes the study's block and its figure, where it has one; returns the block. Raises ValueError where an arm or a seed
    has no row."""
    arms, page = rows_of(study), PROJECT / study.page
    text = block(study, arms)
    page.write_text(replace_block(page.read_text(), study.name, text))
    if arms and study.name in FIGURES:
        FIGURES[study.name](PROJECT / "docs" / "figures" / f"{study.name}.svg", arms)
    return text


def block(study: Study, arms: Arms) -> str:
    """The study's tables, its figure's link and what the rows were measured with, as Markdown."""
    if not arms:
        return f"Not measured yet: `make study NAME={study.name}`.\n"
    caption = CAPTIONS.get(study.name, "gold over KL")
    figure = [f"![{study.name}: {caption}](figures/{study.name}.svg)\n"] if study.name in FIGURES else []
    return "\n".join([TABLES[study.name](arms), *figure, provenance(arms)])


def rows_of(study: Study) -> Arms:
    """The rows by arm, in the order of the study's arms; none where the study was never run."""
    found = group_by_arm(read_rows(study.directory))
    if not found:
        return {}
    missing = [
        f"{arm.name} seed {seed}"
        for arm in study.arms
        for seed in study.seeds
        if seed not in {row.seed for row in found.get(arm.name, [])}
    ]
    if missing:
        raise ValueError(f"study {study.name} lacks rows of {', '.join(missing)}; run `make study NAME={study.name}`")
    return {arm.name: found[arm.name] for arm in study.arms}


def provenance(arms: Arms) -> str:
    """What the rows were measured with."""
    rows = [row for members in arms.values() for row in members]
    worlds, codes = sorted({row.world for row in rows}), sorted({row.code for row in rows})
    seconds = [row.wall_s for row in rows]
    return (
        f"{len(rows)} rows, seeds {', '.join(map(str, sorted({row.seed for row in rows})))}; world {', '.join(worlds)}; "
        f"code {', '.join(codes)}; {min(seconds):.0f} to {max(seconds):.0f} s a unit. Intervals are 95 % t over seeds.\n"
    )


def _matched_kl(arms: Arms) -> str:
    """Gold at equal KL, gains on the first arm, and the last step's objectives."""
    return "\n".join(
        [matched_kl_table(arms, next(iter(arms))), "Gold by objective at the last step:\n", _at_the_end(arms)]
    )


def _at_the_end(arms: Arms) -> str:
    rows = [
        [arm, *(t_interval([row.end[name] for row in members]).format(2) for name in AT_THE_END)]
        for arm, members in arms.items()
    ]
    return markdown_table(["arm", *(name.removeprefix("gold/") for name in AT_THE_END)], rows)


def _gold_over_kl(path: Path, arms: Arms) -> None:
    gold_over_kl(path, arms, "", max_kl=2 * max(KL_LEVELS))


def _aggregation(arms: Arms) -> str:
    return "\n".join(
        [
            matched_kl_table(arms, next(iter(arms))),
            "Good in every respect, for every prompt:\n",
            *(curves_at_kl_table(arms, level, BREADTH) for level in KL_LEVELS),
            "Gold by objective at the last step:\n",
            _at_the_end(arms),
        ]
    )


def _planted(arms: Arms) -> str:
    return "\n".join(
        [
            "Share of responses with the planted word, over training and at equal KL:\n",
            curve_over_steps_table(arms, "planted", STEPS),
            *(curves_at_kl_table(arms, level, HACK) for level in KL_LEVELS),
            matched_kl_table(arms, next(iter(arms))),
        ]
    )


def _planted_over_kl(path: Path, arms: Arms) -> None:
    gold_over_kl(path, arms, "", 2 * max(KL_LEVELS), "planted", "share of responses with the planted word")


BREADTH = {
    "gold": "gold",
    "all good": "all_good",
    "in all six": "all_good_of_six",
    "worst decile": "worst_decile",
    "SD of the gain": "gain_spread",
    "prompts worse": "prompts_worse",
    "violations": "violations",
}
HACK = {"planted": "planted", "gold": "gold", "gold of polite": "gold/polite", "all good": "all_good"}
STEPS = (0.0, 25.0, 50.0, 75.0)
CAPTIONS = {
    "sandbox": "proxy against gold",
    "reward_models": "pair accuracy by rule",
    "planted_hack": "share of responses with the planted word over KL",
    "denoising": "gains on the baseline, and right labels by strength",
    "adaptation": "gold, proxy and accuracy over the steps",
    "policy_start": "gold and KL over the steps",
}
TABLES: dict[str, Callable[[Arms], str]] = {
    "sandbox": sandbox_check.tables,
    "fixed_weights": _matched_kl,
    "reward_models": reward_models.tables,
    "aggregation": _aggregation,
    "planted_hack": _planted,
    "denoising": denoising_tables.tables,
    "adaptation": adaptation_tables.tables,
    "policy_start": adaptation_tables.starts,
    "smollm": smollm_tables.tables,
}
# A study without a figure is not here
FIGURES: dict[str, Callable[[Path, Arms], None]] = {
    "sandbox": sandbox_check.draw,
    "fixed_weights": _gold_over_kl,
    "reward_models": reward_models.draw,
    "aggregation": _gold_over_kl,
    "planted_hack": _planted_over_kl,
    "denoising": denoising_tables.draw,
    "adaptation": adaptation_tables.draw,
    "policy_start": adaptation_tables.draw_starts,
}
