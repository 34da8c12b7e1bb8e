"""Any family of models: sampler, trainer and the model agree, or one line says why not."""

import asyncio
import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from families import FAMILIES, OUTCOMES, folder_name, make, table
from safetensors.torch import load_file, save_file
from test_update import batch

import eval as evaluation
import sft
import train
from config import Config
from data_types import Sample
from engines.hf import HFEngine
from lib import checkpoint, launch, model_check
from lib.distributed import iterate_weights
from lib.errors import UserError
from lib.model_check import check_model
from lib.ways import WAYS
from policy import CompletionLogprobs, Policy, collate

TWO_STEPS = [
    *("--steps", "2", "--questions", "2", "--designs", "2", "--executions", "2"),
    *("--eval-size", "1", "--eval-every", "0", "--stage", "both"),
    *("--design-tokens", "32", "--reply-tokens", "16", "--max-calls", "2"),
]
# A model that is right about half of the time: every step has samples.
REWARDED = [
    *("--model", str(ROOT / "tiny" / "arithmetic"), "--tasks", "arithmetic"),
    *("--questions", "6", "--design-tokens", "96", "--reply-tokens", "48"),
]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A folder with a random model of each family."""
    folder = tmp_path_factory.mktemp("zoo")
    for family in FAMILIES:
        make(family, folder / folder_name(family))
    return folder


def check(folder, checkpointing=False, dtype=torch.float32, weights_dtype=None):
    """(policy, what the check says)."""
    policy = Policy(str(folder), dtype=dtype, weights_dtype=weights_dtype)
    if checkpointing:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
    return policy, asyncio.run(check_model(policy, HFEngine(policy), checkpointing))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", OUTCOMES)
def test_all_agree_or_the_model_is_refused(zoo, family, checkpointing):
    way, _ = OUTCOMES[family]
    folder = zoo / folder_name(family)
    if way is None:
        with pytest.raises(UserError, match=f"--model {folder}: .*--skip-check"):
            check(folder, checkpointing)
        return
    policy, said = check(folder, checkpointing)
    assert policy.way.name == (way or WAYS[0].name)
    assert "agree" in said and way in said


@pytest.mark.parametrize("weights_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("family", [family for family in OUTCOMES if family != "Mamba"])
def test_in_bf16_no_model_is_refused_for_rounding_and_no_way_is_less_safe(
    zoo, family, weights_dtype
):
    """Rounding alone changes a log-probability by up to 0.13 nats here, as in SmolLM2 by 0.04."""
    way, _ = OUTCOMES[family]
    names = [each.name for each in WAYS]
    policy, said = check(zoo / folder_name(family), False, torch.bfloat16, weights_dtype)
    assert "agree" in said
    assert names.index(policy.way.name) >= names.index(way or names[0])
    assert next(policy.model.parameters()).dtype == (weights_dtype or torch.float32)


def test_a_sampler_of_other_numbers_is_refused_in_bf16(zoo):
    class Off(HFEngine):
        async def sample(self, *arguments, **options):
            completion = await super().sample(*arguments, **options)
            logprobs = [logprob - 0.2 for logprob in completion.logprobs]
            return dataclasses.replace(completion, logprobs=logprobs)

    policy = Policy(str(zoo / "Llama"), dtype=torch.bfloat16)
    with pytest.raises(UserError, match="own: sampler in bf16 one way by 0.2.* nats"):
        asyncio.run(check_model(policy, Off(policy)))


def test_an_engine_that_new_weights_do_not_reach_is_refused(zoo):
    class Deaf(HFEngine):
        def update_weights(self, weights):
            list(weights)

    policy = Policy(str(zoo / "Llama"))
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    asyncio.run(check_model(policy, Deaf(policy, own_weights=True)))
    asyncio.run(check_model(policy, HFEngine(policy, own_weights=True), learns=True))
    with pytest.raises(UserError, match="new weights don't get to the engine .*sampler by"):
        asyncio.run(check_model(policy, Deaf(policy, own_weights=True), learns=True))
    for name, weight in policy.model.state_dict().items():
        assert torch.equal(weight, before[name]), name


def test_the_engine_never_samples_asleep(zoo, monkeypatch):
    """BLOOM fails in the fast way, in the middle of the check."""
    monkeypatch.setattr(model_check, "is_on_gpu", lambda policy: True)
    said = []

    class Sleeper(HFEngine):
        async def sample(self, *arguments, **options):
            said.append("sample")
            return await super().sample(*arguments, **options)

        async def sleep(self):
            said.append("sleep")

        def update_weights(self, weights):
            said.append("wake")

    policy = Policy(str(zoo / "BLOOM"), dtype=torch.bfloat16, weights_dtype=torch.bfloat16)
    asyncio.run(check_model(policy, Sleeper(policy)))
    assert said.count("sleep") == said.count("wake") > 1
    assert all(after == "wake" for word, after in zip(said, said[1:]) if word == "sleep")


@pytest.mark.parametrize("family", [family for family, (way, _) in OUTCOMES.items() if way])
def test_the_fast_way_would_be_wrong(zoo, family, monkeypatch):
    """Each that needs a safer way differs by far more than the bound, or fails, in the fast one."""
    monkeypatch.setattr(model_check, "attention_window", lambda model: 48)
    policy = Policy(str(zoo / folder_name(family)))
    why, _ = asyncio.run(model_check.disagreement(policy, HFEngine(policy), False))
    assert why


@pytest.mark.parametrize("family", OUTCOMES)
def test_train_evaluate_and_fine_tune(zoo, family, tmp_path):
    """Whole commands: what is trained is what was sampled, or one line refuses the model."""
    model = ("--model", str(zoo / folder_name(family)))
    run, tuned, samples = tmp_path / "run", tmp_path / "tuned", tmp_path / "samples.jsonl"
    row = {"role": "executor", "completion": "So \\boxed{4}."}
    row["messages"] = [{"role": "user", "content": "What is 2 + 2?"}]
    samples.write_text(json.dumps(row) + "\n")
    answers = ("--design-tokens", "32", "--reply-tokens", "16")
    commands = {
        train.main: (*TWO_STEPS, "--kl", "0.01", "--out", str(run)),  # trains on equal rewards, too
        evaluation.main: ("--limit", "4", "--modes", "metaagent", *answers),
        sft.main: ("--data", str(samples), "--steps", "2", "--batch", "2", "--out", str(tuned)),
    }
    for main, flags in commands.items():
        if OUTCOMES[family][0] is None:
            with pytest.raises(UserError):
                main([*model, *flags])
        else:
            main([*model, *flags])
    if OUTCOMES[family][0] is not None:
        rows = [json.loads(line) for line in open(run / "metrics.jsonl")]
        assert len(rows) == 2
        assert all(row["trained_tokens"] > 0 and row["mismatch_max"] < 1e-3 for row in rows)
        assert (tuned / "model.safetensors").exists()


def damaged(zoo, tmp_path, change):
    """A Llama whose weights `change` has changed."""
    folder = tmp_path / "damaged"
    shutil.copytree(zoo / "Llama", folder)
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


QUERY = "model.layers.0.self_attn.q_proj.weight"


def rename(weights):
    weights["transformer." + QUERY] = weights.pop(QUERY)


def reshape(weights):
    weights[QUERY] = weights[QUERY][:32].clone()


def spoil(weights):
    weights[QUERY][3, 3] = torch.nan


@pytest.mark.parametrize(
    "change, problem",
    [
        (rename, f"has no weights for {QUERY}, but has transformer.{QUERY}"),
        (reshape, "cannot be loaded"),
        (spoil, f"{QUERY} has weights that are NaN"),
    ],
)
def test_weights_that_can_not_be_right_are_refused_and_named(zoo, tmp_path, change, problem):
    with pytest.raises(UserError, match=problem):
        check(damaged(zoo, tmp_path, change))


def test_a_tokenizer_larger_than_the_model_is_refused(zoo):
    policy = Policy(str(zoo / "Llama"))
    policy.tokenizer.add_tokens([f"new-{i}" for i in range(300)])
    with pytest.raises(UserError, match="its tokenizer has 11.. tokens, the model 1024"):
        asyncio.run(check_model(policy, HFEngine(policy)))


def test_a_context_that_the_prompt_does_not_fit_in_is_refused(tmp_path):
    with pytest.raises(UserError, match="prompt does not fit into its context of 12 tokens"):
        train.main(["--max-length", "12", "--out", str(tmp_path / "run"), *TWO_STEPS])


def test_a_model_that_can_not_be_saved_is_refused_before_the_first_step(zoo, tmp_path):
    folder = tmp_path / "greedy"
    shutil.copytree(zoo / "Llama", folder)
    config = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": 1}
    (folder / "generation_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="cannot be saved in .*GenerationConfig is invalid"):
        train.main(["--model", str(folder), "--out", str(tmp_path / "run"), *TWO_STEPS])


def test_the_reference_is_computed_as_the_policy_is(zoo):
    """At the start the KL term is 0, also where the fast way would be wrong."""
    policy, _ = check(zoo / "gpt-oss")
    config = Config(model=policy.path, kl=1.0)
    reference = launch.load_reference(config, {"executor"}, policy)
    sample = Sample(tuple(range(10, 90)), (7, 8), (0.0, 0.0), 1.0, "executor")
    batch = collate([sample], policy.pad_id)
    with torch.no_grad():
        torch.testing.assert_close(reference(batch)[0], CompletionLogprobs(policy)(batch)[0])


def test_the_tiny_models_learning_rate_is_no_real_models(monkeypatch, caplog):
    caplog.set_level("INFO", logger="metaagent")
    policy = Policy("tiny")
    launch.warn_of_large_lr(Config(), policy)
    monkeypatch.setattr(launch, "LARGE_MODEL", 500_000)
    launch.warn_of_large_lr(Config(lr=1e-5), policy)
    launch.warn_of_large_lr(Config(lora=8), policy)
    assert not caplog.records
    launch.warn_of_large_lr(Config(), policy)
    assert "--lr 0.0005 is the tiny model's" in caplog.text


def test_out_of_memory_is_one_line_and_nothing_is_lost(tmp_path, monkeypatch):
    out = tmp_path / "run"
    update = train.Learner.accumulate_gradient

    def accumulate(learner, micro_batch, num_tokens, stats):
        update(learner, micro_batch, num_tokens, stats)
        if (out / "metrics.jsonl").read_text():  # in the second step
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train.Learner, "accumulate_gradient", accumulate)
    with pytest.raises(
        UserError, match="out of memory in step 1 .*--checkpointing.*--batch-tokens.*--resume"
    ):
        train.main([*TWO_STEPS, *REWARDED, "--out", str(out)])
    state = torch.load(out / "checkpoint" / "trainer.pt", weights_only=True)
    assert state["step"] == 1


def test_a_model_that_dies_ends_the_run_and_the_good_checkpoint_stays(tmp_path, monkeypatch):
    """A step of size 1e6 leaves weights that are finite, and a model that says anything."""
    out = tmp_path / "run"
    step_optimizer = train.Learner.step_optimizer

    def step(learner, grad_norm):
        if (out / "checkpoint").exists():  # in the second step
            learner.optimizer.param_groups[0]["lr"] = 1e6
        step_optimizer(learner, grad_norm)

    monkeypatch.setattr(train.Learner, "step_optimizer", step)
    flags = (*REWARDED, "--save-every", "1", "--out", str(out))
    with pytest.raises(UserError, match="has died.* lower --lr. .*/checkpoint has the last good"):
        train.main([*TWO_STEPS, *flags])
    assert checkpoint.read(out / "checkpoint")["step"] == 1
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 1


def test_output_that_is_not_finite_is_no_completion(zoo):
    """Such logits would make every token 0, with exit code 0."""
    policy = Policy(str(zoo / "Llama"))
    engine = HFEngine(policy)
    with torch.no_grad():
        policy.model.lm_head.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        asyncio.run(engine.sample((5, 6, 7), 4, seed=0))


TWO_RANKS = """
import asyncio, os, sys
sys.path[:0] = sys.argv[1:3]
import torch, torch.distributed as dist
import train
from config import Config
from engines.hf import HFEngine
from lib.distributed import iterate_weights, join
from lib.model_check import check_model
from policy import Policy
from test_update import batch

rank = int(os.environ["RANK"])
torch.set_num_threads(1)
join(2, 60)
for folder in sys.argv[3:]:
    for shard in (False, True):
        policy = Policy(folder, dtype=torch.float64)
        asyncio.run(check_model(policy, HFEngine(policy)))
        subject = train.Learner(Config(shard=shard, batch_tokens=16), policy, None, {"executor"})
        for _ in range(2):
            update = subject.update(batch([1.0, -1.0, 0.5] if rank == 0 else [-0.5]))
            assert update["grad_norm"] > 0
        weights = dict(iterate_weights(policy.model))
        if rank == 0:
            torch.save(weights, f"{folder}/{'shard' if shard else 'ddp'}.pt")
dist.destroy_process_group()
"""


def test_updates_on_two_ranks(zoo, tmp_path):
    """DDP, and --shard on layers of any name, come to the weights of one rank."""
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    folders = [zoo / name for name in ("GPT-2", "Gemma-3", "Mistral")]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *torchrun, *map(str, (script, ROOT, ROOT / "tests", *folders))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    for folder in folders:
        policy, _ = check(folder, dtype=torch.float64)
        subject = train.Learner(Config(batch_tokens=16), policy, None, {"executor"})
        for _ in range(2):
            subject.update(batch([1.0, -1.0, 0.5]) + batch([-0.5]))
        for how in ("ddp", "shard"):
            on_two = torch.load(folder / f"{how}.pt")
            for name, weight in iterate_weights(policy.model):
                assert (weight - on_two[name]).abs().max() < 1e-9, (folder, how, name)


def test_weights_that_wait_on_the_cpu_are_checked_there(zoo):
    """With --shard they are not on the device yet; here that is one that can't compute at all."""
    here, folder = Policy(str(zoo / "Llama")), str(zoo / "Llama")
    policy = Policy(folder, device="meta", load_device="cpu")
    assert "agree" in asyncio.run(check_model(policy, HFEngine(here)))


def test_the_table_is_in_the_docs():
    assert table() in (ROOT / "docs" / "models.md").read_text()
