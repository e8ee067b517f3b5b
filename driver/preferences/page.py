"""preferences/page.html: how strong the pairs are, how sure the members, and which labels look most wrong.

Called by driver/preferences/stage.py. Loads and runs nothing; every text of the data is escaped; same results, same bytes.
"""

from __future__ import annotations

from pathlib import Path

from common.data.data import PreferencePair
from driver.evaluate_rm.page import document, legend
from driver.preferences.charts import bucket_chart, histogram_chart
from driver.preferences.results import IN_SAMPLE, OUT_OF_FOLD, MemberResult, Said, Strength
from driver.report.html import cut, fixed, number, row, safe, section, table
from learner.preferences.strength import Bucket, weakest

SHOWN = 20
FIGURE = "max-width:760px;margin-bottom:14px"
MINUS = "\N{MINUS SIGN}"
KINDS = {
    OUT_OF_FOLD: "by members that did not train on the pair's prompt",
    IN_SAMPLE: "by members that trained on the pair",
}


def write_page(path: Path, found: Strength) -> Path:
    """Writes the page and returns its path."""
    parts = (_title(found), _distribution(found), _buckets(found.buckets), _members(found), _weakest(found))
    path.write_text(document("preference strength", "".join(parts)), encoding="utf-8")
    return path


def _title(found: Strength) -> str:
    settings, said = found.settings, found.compared[OUT_OF_FOLD if found.cross_fitted else IN_SAMPLE]
    facts = {
        "pairs": f"{len(found.pairs):,}",
        f"members ({safe(settings.train)}, folds {settings.folds})": str(settings.members),
        "pairs of strength below 0": f"{found.share_below_0:.1%}",
        f"accuracy of a member, {OUT_OF_FOLD if found.cross_fitted else IN_SAMPLE}": fixed(said.accuracy),
        "correlation of two members": number(said.agreement.mean, 2),
    }
    shown = "".join(f"<div><b>{value}</b>{name}</div>" for name, value in facts.items())
    text = (
        f"The strength of a pair is the mean, over reward models, of the chosen response's score {MINUS} the rejected one's. "
        "Well above 0 the label is clear; near 0 the two are alike or the models do not know; well below 0 the models prefer "
        "the rejected response, and the label may be wrong. "
    )
    text += (
        "Each pair is judged by the members that did not train on its prompt."
        if found.cross_fitted
        else "All members trained on all training pairs (folds 1), wrong labels too: errors are partly hidden."
    )
    kicker = '<p class="kicker">iter-rlhf: stage preferences</p><h1>Preference strength</h1>'
    warned = "".join(f'<p class="absent">{safe(line)}</p>' for line in found.warnings)
    return f'{kicker}<p>{text}</p>{warned}<div class="facts">{shown}</div>'


def _distribution(found: Strength) -> str:
    intro = (
        "Training pairs by strength, below 0 left of the dotted line; what lies beyond the ends is in the first and last "
        "bar. Members that saw a label move towards it, right or wrong, so the in-sample mass lies further to the right."
        if found.cross_fitted
        else "Training pairs by strength, below 0 left of the dotted line; the ends count what lies beyond them."
    )
    chart = (
        f'<figure style="{FIGURE}">{legend(found.compared)}{histogram_chart(found.histogram(), "strength")}</figure>'
    )
    head = ["", "pairs", "below 0", "mean", "std over members", "accuracy of a member", "correlation of two members"]
    rows = [_said_row(name, said) for name, said in found.compared.items()]
    last = f"<p>Rank correlation of the two: {fixed(found.rank_correlation)}.</p>" if found.cross_fitted else ""
    return section("distribution", "How strong", intro, f"{chart}{table(head, rows)}{last}")


def _said_row(name: str, said: Said) -> str:
    twos = said.agreement
    span = f" ({number(twos.low, 2)} to {number(twos.high, 2)})" if twos.twos > 1 else ""
    numbers = [number(said.mean), number(said.std), fixed(said.accuracy), f"{number(twos.mean, 2)}{span}"]
    label = f'{safe(name)} <span class="unit">{KINDS[name]}</span>'
    return row([label, f"{said.pairs:,}", f"{said.share_below_0:.1%}", *numbers])


def _buckets(buckets: list[Bucket]) -> str:
    intro = (
        f"All pairs from the weakest to the strongest in {len(buckets)} equal parts; the axis is the part's place in per cent. "
        "Above: mean strength, and one standard deviation over members to each side. Below: that standard deviation."
    )
    chart = f'<figure style="{FIGURE}">{bucket_chart(buckets, "mean and standard deviation by part")}</figure>'
    rows = [
        row([f"{at}", f"{part.pairs:,}", *map(number, (part.low, part.high, part.mean, part.std))])
        for at, part in enumerate(buckets, 1)
    ]
    numbers = table(["part", "pairs", "from", "to", "mean", "std"], rows)
    return section("parts", "Mean and spread", intro, f"{chart}<details><summary>numbers</summary>{numbers}</details>")


def _members(found: Strength) -> str:
    intro = (
        "How many pairs a member orders as their labels do: of those that it left out (held-out ones too) and of those that it "
        "trained on. Left out near 0.5: it has learned nothing that carries over, and the strengths are noise."
    )
    head = ["member", "trained on", "left out", "accuracy, left out", "accuracy, trained on"]
    rows = table(head, [_member_row(member) for member in found.members])
    return section(
        "members", "Members", intro, f"<details open><summary>{len(found.members)} members</summary>{rows}</details>"
    )


def _member_row(member: MemberResult) -> str:
    accuracies = (member.left_out_accuracy, member.in_sample_accuracy)
    return row([str(member.member), f"{member.trained_pairs:,}", f"{member.left_out_pairs:,}", *map(fixed, accuracies)])


def _weakest(found: Strength) -> str:
    picked = weakest(found.strength.mean, SHOWN)
    intro = (
        f"The {len(picked)} pairs of lowest strength: here the members most prefer the rejected response. Read them before you "
        "trust a threshold; a low strength may also be a taste that most raters do not share, or a weak reward model."
    )
    names = '<span>strength</span><span class="prompt">chosen</span><span>rejected</span><span>std</span>'
    body = f'<div class="heads">{names}</div>' + "".join(_pair(found, at) for at in picked)
    return section("weakest", "Labels that look wrong", intro, body)


def _pair(found: Strength, at: int) -> str:
    pair, mean, std = found.pairs[at], float(found.strength.mean[at]), float(found.strength.std[at])
    line = (
        f'<span><b>{fixed(mean)}</b></span><span class="text prompt">{safe(pair.chosen[:300])}</span>'
        f'<span class="text">{safe(pair.rejected[:300])}</span><span style="text-align:right">{fixed(std)}</span>'
    )
    sides = (("Chosen", pair.chosen), ("Rejected", pair.rejected))
    texts = "".join(f'<div><h3>{name}</h3><div class="full">{cut(text)}</div></div>' for name, text in sides)
    note = (
        f'<p class="note">row {at + 1} of pairs.jsonl; by {found.strength.members[at]} members; in sample '
        f"{fixed(float(found.in_sample.mean[at]))}, std {fixed(float(found.in_sample.std[at]))}</p>"
    )
    body = f'<h3>Prompt</h3>{_conversation(pair)}<div class="sides">{texts}</div>{note}'
    return f'<details class="sample"><summary>{line}</summary><div class="body">{body}</div></details>\n'


def _conversation(pair: PreferencePair) -> str:
    """Its turns; who speaks is said where there is more than one."""
    if len(pair.messages) == 1:
        return f'<div class="full">{cut(pair.messages[0].content)}</div>'
    return "".join(
        f'<div class="full"><span class="unit">{safe(message.role)}</span>\n{cut(message.content)}</div>'
        for message in pair.messages
    )
