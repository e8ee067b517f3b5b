"""The stages of a run, in order; each a function of the run's context that reads and writes the run's directory.

    sft -> collect -> preferences -> reward_model -> iterate -> evaluate -> export -> report
    and the commands evaluate_rm, explain (driver/commands.py)

A finished stage leaves `stages/<name>.json` with what it depended on; a resumed run skips it if that is still so and stops
if it is not. Called by launch.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from common.config.config import Config
from common.config.stages import BY_NAME
from common.data.data import read_prompts, write_jsonl
from common.errors import RunError
from common.files import sync_tree, write_whole
from common.json_text import json_text
from common.judge import JudgeItem, label_samples, load_function, without_equal_texts
from common.model_size import DTYPE_BYTES, num_parameters
from common.models import absolute
from common.queue.queue import Queue, QueueError
from driver.cluster.calls import RoleError
from driver.cluster.cluster import Cluster
from driver.cluster.run import Run
from driver.commands import run_evaluate_rm, run_explain
from driver.export.stage import Export, is_current
from driver.loop.evaluation import format_table, gold_table
from driver.loop.loop import Inputs, Loop
from driver.loop.publish import Publisher
from driver.loop.references import sample_prompts
from driver.preferences.stage import run_preferences
from driver.record import checkpoint
from driver.record.dead_letters import note_letters
from driver.record.loop_state import read_loop_state
from driver.record.progress import say
from driver.record.resume import settle
from driver.record.stage_inputs import changed_inputs, stage_inputs
from driver.report.measures import chance_lines, format_accuracy, summary_without_judge
from driver.report.page import write_report
from driver.rounds.reward_models import RewardModels, served_model


class StageError(RunError):
    """A stage that cannot run or be skipped; says what to do."""


def run_stages(
    config: Config, stages: Sequence[str], cluster: Cluster, password: str | None, cleanup: ExitStack
) -> None:
    """Runs the stages in order, skipping those that are finished."""
    run = Run(config, cluster, config.run_dir, password, cleanup)
    todo = [stage for stage in stages if not _finished(run, stage)]
    if "iterate" in todo:
        settle(run.directory, config.learner.groups_per_step, config.checkpoint.resume)
    elif "export" in todo and not is_current(run.directory):  # what only reads a checkpoint begins nothing again
        settle(run.directory, config.learner.groups_per_step, "auto")
    if any(_needs_roles(run, stage) for stage in todo):
        run.start_roles(todo)
    for stage in todo:
        started = time.monotonic()
        say(f"stage {stage}")
        RUN[stage](run)
        _record(run, stage)
        say(f"stage {stage} done in {time.monotonic() - started:.0f} s")


def _needs_roles(run: Run, stage: str) -> bool:
    return bool(BY_NAME[stage].roles) and not (stage == "export" and is_current(run.directory))


# ---- stages -----------------------------------------------------------------------------------------------------------


def run_sft(run: Run) -> None:
    """Fine-tunes the policy on demonstrations."""
    model = run.config.policy.model
    assert model is not None, "the preflight asks for a policy"
    with run.cluster.disks.writing(run.directory / "sft") as target:
        metrics = run.cluster.learners.sft(absolute(model), target)
    say(f"  loss {metrics['sft/first_loss']:.3f} -> {metrics['sft/last_loss']:.3f} nats per token")


def run_collect(run: Run) -> None:
    """Samples the SFT policy on the first judge.collect_prompts prompts and has the labeler rate and compare them."""
    judge, data = run.config.judge, run.config.data
    assert judge.labeler is not None and data.prompts is not None, "the preflight asks for both"
    prompts = run.prompts(data.prompts, judge.collect_prompts or None)
    run.cluster.disks.share(run.anchor)
    run.cluster.learners.load_anchor(run.anchor)
    run.await_engines()
    roles, tolerance = run.cluster, run.config.sync_tolerance
    Publisher(roles.learners, roles.actors, run.anchor_directory, prompts, tolerance).anchor()
    sampled = sample_prompts(run.cluster.actors, prompts, judge.collect_responses, run.config.run.seed, "collect")
    ratings, compared = label_samples(load_function(judge.labeler), prompts, sampled, run.config.run.seed)
    pairs, equal = without_equal_texts(compared)
    write_jsonl(run.collected("ratings"), ratings)
    write_jsonl(run.collected("preferences"), pairs)
    left_out = f" ({equal} pairs of equal texts left out)" if equal else ""
    say(f"  {len(ratings)} rated responses and {len(pairs)} preference pairs of {len(prompts)} prompts{left_out}")


def run_reward_model(run: Run) -> None:
    """Trains reward model version 0 and, where it is asked for, the baseline."""
    files = run.labelled
    for source in (run.anchor, *files.all()):
        run.cluster.disks.share(source)
    disks, rm = run.cluster.disks, run.directory / "rm"
    with disks.writing(rm / "version_0") as target, disks.writing(rm / "baseline") as beside:
        baseline = beside if run.config.learner.reward_model.baseline else None
        report = run.cluster.learners.reward_model(run.anchor, files, target, baseline)
    say(f"  {format_accuracy(report)}")
    for line in chance_lines(report):
        say(line)
    record = checkpoint.read_json(run.directory / "rm" / "version_0" / "report.json")
    for line in (*record["rows"], *(f"warning: {line}" for line in record["calibration_warnings"])):
        say(f"  {line}")


def run_iterate(run: Run) -> None:
    """Runs the loop: samples, scores, trains and publishes, iteration by iteration."""
    config, data = run.config, run.config.data
    assert data.prompts is not None, "the preflight asks for prompts"
    prompts = run.prompts(data.prompts)
    held_out = run.prompts(data.eval_prompts, config.evaluate.prompts) if data.eval_prompts else []
    queue, address = run.open_queue()
    if "reward_model" in config.stages:  # said again where that stage was done before this start
        for line in chance_lines(checkpoint.read_json(Path(run.reward_model) / "report.json")["report"]):
            say(line)
    run.await_engines()
    run.cluster.disks.share(run.anchor)
    models = RewardModels(config, run.cluster, run.directory, run.reward_model, run.labelled)
    models.connect(address)
    inputs = Inputs(run.directory, run.anchor, run.anchor_directory, prompts, held_out)
    loop = Loop(config, run.cluster, queue, address, inputs, models)
    with _blaming(queue):
        loop.run()
    run.policy_loaded = True
    note_letters(run.directory, queue.dead_letters())
    if problems := loop.audit():
        raise StageError("the ledger does not add up:\n" + "\n".join(problems))
    queue.delete_run()  # a server of your own would keep it for ever; the checkpoint has all that counts
    say(f"  ledger: every slot ended once ({loop.summary()})")


def run_evaluate(run: Run) -> None:
    """The gold table, from the rows that the loop judged; without a judge, what is known without one."""
    ideal = _ideal_golds(run)
    table = gold_table(run.config, run.directory / "evaluations", ideal)
    write_whole(run.directory / "evaluation.json", json_text(table, indent=1))
    say(format_table(table) if table else "  no judge.function or no data.eval_prompts: nothing was judged")
    if not table:
        say("\n".join(f"  {line}" for line in summary_without_judge(run.directory)))


def run_export(run: Run) -> None:
    """Writes the models, unless they are there from the newest checkpoint, and pushes them where that is asked for."""
    export, cluster = Export(run.config), run.cluster
    if is_current(run.directory):
        export.write_cards()
    else:
        newest, parameters = _load_policy(run), num_parameters(run.anchor_directory)
        size = parameters and parameters * DTYPE_BYTES[run.config.policy.dtype]
        state = read_loop_state(newest)
        export.write(
            state.step,
            lambda aside: _export_policy(cluster, aside),
            size,
            served_model(run.directory, run.reward_model, state.reward_model),
        )
    export.push()


def run_report(run: Run) -> None:
    """Writes report.html."""
    say(f"  {write_report(run.directory, run.config.rewarder.objectives)}")


RUN: dict[str, Callable[[Run], None]] = {  # the stages of common/config/stages.py
    "sft": run_sft,
    "collect": run_collect,
    "preferences": run_preferences,
    "reward_model": run_reward_model,
    "iterate": run_iterate,
    "evaluate": run_evaluate,
    "export": run_export,
    "report": run_report,
    "evaluate_rm": run_evaluate_rm,
    "explain": run_explain,
}


# ---- helpers ----------------------------------------------------------------------------------------------------------


@contextmanager
def _blaming(queue: Queue) -> Iterator[None]:
    """Shutdown boundary: where a role ends the run, the slots that it had begun keep their attempts for the next --resume."""
    try:
        yield
    except RoleError:
        with suppress(QueueError):  # the server may be what died
            queue.blame()
        raise


def _load_policy(run: Run) -> Path:
    """The newest checkpoint, with its policy in the learners."""
    steps = checkpoint.steps(run.directory / "checkpoints")
    if not steps:
        raise StageError("there is no checkpoint to export; run stage iterate first")
    newest = (run.directory / "checkpoints" / f"step_{steps[-1]}").resolve()
    if not run.policy_loaded:
        checkpoint.verify(newest)
        for source in (run.anchor, newest):
            run.cluster.disks.share(source)
        run.cluster.learners.load_policy(run.anchor, str(newest))
    return newest


def _export_policy(cluster: Cluster, aside: Path) -> None:
    with cluster.disks.writing(aside) as target:
        cluster.learners.export(target)


def _ideal_golds(run: Run) -> list[float]:
    config = run.config
    if config.judge.ideal is None or config.judge.function is None or config.data.eval_prompts is None:
        return []
    answer, judge = load_function(config.judge.ideal), load_function(config.judge.function)
    rows = read_prompts(config.data.eval_prompts, config.evaluate.prompts)
    items = [JudgeItem(row.messages, row.meta, answer(row.messages, row.meta), "stop") for row in rows]
    return [judge(item)["gold"] for item in items]


def _inputs(run: Run, stage: str) -> dict[str, Any]:
    depends = BY_NAME[stage]
    return stage_inputs(run.config, depends.sections, depends.files)


def _finished(run: Run, stage: str) -> bool:
    path = run.directory / "stages" / f"{stage}.json"
    if not path.is_file() or not BY_NAME[stage].skippable:
        return False
    if changed := changed_inputs(checkpoint.read_json(path), _inputs(run, stage)):
        raise StageError(
            f"stage {stage} of {run.directory} was done with another {', '.join(changed)}; "
            "start a run with another run.name, or put back what it was done with"
        )
    say(f"stage {stage}: done before, skipped")
    return True


def _record(run: Run, stage: str) -> None:
    makes = BY_NAME[stage].makes
    if makes is not None and (run.directory / makes).exists():
        sync_tree(run.directory / makes)  # the record says that it is there, after a power cut too
    write_whole(run.directory / "stages" / f"{stage}.json", json_text(_inputs(run, stage), indent=1))
