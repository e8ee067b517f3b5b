"""common/config/stages.py and driver/stages.py: one table of stages, whose names all mean something."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import pytest

from common.config.file import BASE, load_config
from common.config.stages import COMMANDS, STAGES, TABLE, roles_needed
from driver.cluster.cluster import Cluster
from driver.cluster.run import Run
from driver.preflight.placement import roles_of
from driver.stages import RUN, StageError, run_stages

CONFIG = load_config(BASE, ["aggregation.kind=final_score", "adaptation.when=iteration", "judge.model=owner/judge"])


def test_every_stage_and_command_has_its_function_in_order() -> None:
    assert list(RUN) == [*STAGES, *COMMANDS]
    assert STAGES[0] == "sft" and STAGES[-1] == "report" and COMMANDS == ("evaluate_rm", "explain")


def test_the_names_in_the_table_exist() -> None:
    roles = {role.name for role in roles_of(CONFIG, STAGES, None, None)}
    for at, stage in enumerate(TABLE):
        for section in stage.sections:
            attrgetter(section)(CONFIG)
        for file in stage.files:
            attrgetter(file)(CONFIG.data)
        assert set(stage.roles) <= roles
        makers = {before.name for before in TABLE[:at] if before.makes is not None}
        assert set(stage.builds_on) <= makers, f"{stage.name} builds on a stage before it that leaves a file"
    assert roles_needed(STAGES) == roles and roles_needed(COMMANDS) == set()


def test_a_command_is_never_skipped_and_a_stage_is_if_nothing_that_it_read_changed(tmp_path: Path) -> None:
    """`collect` is done by hand, so that no role is needed: a changed file of its stops the run, and a changed section."""
    assert not any(stage.skippable for stage in TABLE if stage.command)
    (tmp_path / "prompts.jsonl").write_text("1")
    data = replace(CONFIG.data, prompts=str(tmp_path / "prompts.jsonl"))
    config = replace(CONFIG, run=replace(CONFIG.run, dir=str(tmp_path), name="run"), data=data)
    cluster = Cluster(config)
    from driver import stages

    stages._record(Run(config, cluster, config.run_dir, None, ExitStack()), "collect")
    with ExitStack() as cleanup:
        run_stages(config, ["collect"], cluster, None, cleanup)
        (tmp_path / "prompts.jsonl").write_text("2")
        with pytest.raises(StageError, match=r"stage collect .* done with another data\.prompts;"):
            run_stages(config, ["collect"], cluster, None, cleanup)
        changed = replace(config, judge=replace(config.judge, labeler="m:f"))
        (tmp_path / "prompts.jsonl").write_text("1")
        with pytest.raises(StageError, match=r"done with another judge\.labeler;"):
            run_stages(changed, ["collect"], cluster, None, cleanup)
