"""Sampling and scoring: the same numbers whatever the batch, the padding, the chunks."""
import asyncio
import json

import pytest
import torch
from conftest import ROOT, prompts

import sft
import tasks
from policy import EngineError, HFEngine, Policy, PromptTooLong, Request, decode, pick


def generate(policy, requests):
    """The completions of a batch, in its order."""
    found = dict(pair for finished in decode(policy, requests) for pair in finished)
    return [found[row] for row in range(len(requests))]


def test_a_sample_depends_on_its_seed_and_not_on_its_batch(policy):
    requests = [Request(prompt, 12 + i % 5, 1.0, i) for i, prompt in enumerate(prompts(policy, 24))]
    together = generate(policy, requests)
    assert [c.ids for c in together] == [generate(policy, [request])[0].ids for request in requests]
    same, other = generate(policy, [requests[0], Request(requests[0].prompt_ids, 12, 1.0, 99)])
    assert same.ids == together[0].ids != other.ids


def test_logprobs_are_those_of_the_model(policy):
    for completion, request in ((c, r) for r in [Request(p, 16, 1.0, i) for i, p in enumerate(prompts(policy, 6))] for c in generate(policy, [r])):
        logits = policy.model(torch.tensor([request.prompt_ids + completion.ids])).logits[0]
        expected = logits.log_softmax(-1)[len(request.prompt_ids) - 1:-1].gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
        assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)
        assert len(completion.ids) == len(completion.logprobs) <= 16
        assert completion.truncated == (completion.ids[-1] not in policy.end_ids)


def test_pick_samples_the_distribution():
    """Inverse CDF: the token whose stretch of [0, 1) holds the number. Probabilities 1/2, 1/4, 1/4."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().repeat(5, 1)
    token, logprob = pick(logits, torch.ones(5), torch.tensor([0.0, 0.49, 0.51, 0.76, 0.999999]))
    assert token.tolist() == [0, 0, 1, 2, 2]
    assert torch.allclose(logprob.exp(), torch.tensor([0.5, 0.5, 0.25, 0.25, 0.25]))
    hot, _ = pick(logits, torch.tensor([0.0] * 5), torch.rand(5))
    assert hot.tolist() == [0] * 5  # temperature 0: the most likely
    _, logprob = pick(logits[:1], torch.tensor([2.0]), torch.tensor([0.0]))
    assert logprob.exp().item() == pytest.approx(0.5 ** 0.5 / (0.5 ** 0.5 + 1.0), abs=1e-6)  # of softmax(logits / 2)


def test_rounds_are_complete_and_nested(policy, monkeypatch):
    """The batch runs when all that could ask are waiting: three coroutines, the third of which asks for two at once."""
    engine, sizes = HFEngine(policy), []
    monkeypatch.setattr("policy.decode", lambda policy, requests, model: sizes.append(len(requests)) or decode(policy, requests, model))
    prompt = prompts(policy, 1)[0]

    async def one(seed):
        return await engine.sample(prompt, 4, seed)

    async def two():
        await asyncio.sleep(0.05)  # a script that thinks: the others wait for it
        return await engine.gather(one(2), one(3))

    async def then():
        await one(4)
        return await one(5)

    asyncio.run(engine.gather(one(0), two(), then()))
    assert sizes == [4, 1] and engine.live == 1


def test_who_has_its_sample_goes_on_while_others_decode(policy):
    """One token and forty: what follows the short one happens before the long one is done; the next round waits for both."""
    engine, events = HFEngine(policy), []

    async def one(name, tokens):
        await engine.sample(prompts(policy, 1)[0], tokens, 0)
        events.append(name)
        await asyncio.sleep(0.001)
        await engine.sample(prompts(policy, 1)[0], 1, 1)
        events.append(name)

    asyncio.run(engine.gather(one("short", 1), one("long", 40)))
    assert events[:2] == ["short", "long"] and sorted(events[2:]) == ["long", "short"]


def test_a_failing_coroutine_leaves_the_engine_usable(policy):
    engine = HFEngine(policy)
    prompt = prompts(policy, 1)[0]

    async def fails():
        raise KeyError("on purpose")

    async def go():
        with pytest.raises(KeyError):
            await engine.gather(engine.sample(prompt, 4, 0), fails(), engine.sample(prompt, 4, 1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await engine.gather(engine.sample(prompt, 4, 2), asyncio.sleep(1))
        assert engine.live == 1 and not engine.waiting
        return await engine.sample(prompt, 4, 3)

    assert asyncio.run(go()).ids


def test_errors_of_the_model_reach_whoever_waits(policy, monkeypatch):
    """Out of memory is an EngineError (infrastructure); a bug stays what it is. Nobody waits for ever."""
    for raised, expected in ((RuntimeError("out of memory"), EngineError), (IndexError("a bug"), IndexError)):
        def fail(*_, raised=raised):
            raise raised

        monkeypatch.setattr("policy.decode", fail)
        with pytest.raises(expected):
            asyncio.run(HFEngine(policy).sample((5, 6), 4, 0))


def test_prompts_that_do_not_fit_are_refused(policy):
    with pytest.raises(PromptTooLong, match="2048"):
        asyncio.run(HFEngine(policy).sample((5,) * 2048, 4, 0))
    assert len(asyncio.run(HFEngine(policy).sample((5,) * 2047, 4, 0)).ids) == 1


def test_save_and_load_give_the_same_model(policy, tmp_path):
    policy.save(tmp_path / "copy")
    copy = Policy(str(tmp_path / "copy"))
    request = Request(prompts(policy, 1)[0], 16, 1.0, 3)
    assert generate(copy, [request]) == generate(policy, [request])


def test_tiny_is_tiny():
    assert sum(path.stat().st_size for path in (ROOT / "tiny").iterdir()) <= 4 << 20


def test_what_all_prompts_begin_with_is_computed_once(policy):
    """A long common beginning, then different ends of different lengths: the same samples, and the same log-probabilities."""
    rest = prompts(policy, 5)
    shared, seen = tuple(range(5, 105)), []
    requests = [Request(shared + rest[i % 5][:6 + i % 5], 12, 1.0, i) for i in range(8)]
    handle = policy.model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
    try:
        together = generate(policy, requests)
    finally:
        handle.remove()
    assert seen[0][0] == 1 and seen[0][1] >= 100 and seen[1] == (5, max(len(r.prompt_ids) for r in requests) - seen[0][1])
    for completion, request in zip(together, requests):
        alone, = generate(policy, [request])
        assert completion.ids == alone.ids and torch.allclose(torch.tensor(completion.logprobs), torch.tensor(alone.logprobs), atol=1e-5)


def test_a_bf16_engine_samples_from_a_copy_that_sync_renews():
    """The trainer's weights stay fp32; the engine's follow them at `sync` and not before."""
    subject = Policy(str(ROOT / "tiny"), dtype=torch.bfloat16)
    engine = HFEngine(subject)
    prompt = prompts(subject, 1)[0]
    before = asyncio.run(engine.sample(prompt, 8, 0))
    with torch.no_grad():
        subject.model.get_input_embeddings().weight.mul_(0.5)
    assert asyncio.run(engine.sample(prompt, 8, 0)) == before
    engine.sync(subject.model.state_dict().items())
    assert asyncio.run(engine.sample(prompt, 8, 0)) != before
    assert engine.model.dtype == torch.bfloat16 and subject.model.dtype == torch.float32


def write_gguf(path, model, tokenizer):
    """A small Llama and its tokenizer as a GGUF file of fp32 tensors."""
    import gguf
    c, vocabulary = model.config, tokenizer.get_vocab()
    writer, parts = gguf.GGUFWriter(str(path), "llama"), json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_context_length(c.max_position_embeddings), writer.add_embedding_length(c.hidden_size), writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size), writer.add_head_count(c.num_attention_heads), writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps), writer.add_rope_freq_base(c.rope_parameters["rope_theta"]), writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2"), writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_merges([" ".join(pair) for pair in parts["model"]["merges"]])
    special = {token["content"] for token in parts["added_tokens"]}
    writer.add_token_types([3 if token in special else 1 for token in sorted(vocabulary, key=vocabulary.get)])
    writer.add_eos_token_id(tokenizer.eos_token_id), writer.add_pad_token_id(tokenizer.pad_token_id), writer.add_chat_template(tokenizer.chat_template)
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
             "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
    for name, tensor in model.named_parameters():
        kind, *rest = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        other = f"blk.{rest[0]}.{names[rest[1]]}" if kind == "layers" else {"embed_tokens": "token_embd", "norm": "output_norm"}[kind]
        if other.endswith(("attn_q", "attn_k")):  # llama.cpp turns pairs of neighbours, transformers halves
            heads = c.num_attention_heads if other.endswith("q") else c.num_key_value_heads
            tensor = tensor.reshape(heads, 2, -1, c.hidden_size).swapaxes(1, 2).reshape(tensor.shape)
        writer.add_tensor(f"{other}.weight", tensor.detach().contiguous().numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()


def test_a_gguf_file_is_read_and_saved_as_a_folder(policy, tmp_path):
    """The weights, the tokenizer and the chat template of a GGUF file; the folder written of it is the same model."""
    pytest.importorskip("gguf", reason="gguf is not installed (tests/requirements.txt)")
    pytest.importorskip("accelerate", reason="accelerate is not installed (tests/requirements.txt)")
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(policy.tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                                         num_key_value_heads=2, max_position_embeddings=256, tie_word_embeddings=True)).eval()
    write_gguf(tmp_path / "small.gguf", model, policy.tokenizer)
    sft.main(["--model", str(tmp_path / "small.gguf"), "--out", str(tmp_path / "folder")])
    prompt = prompts(policy, 1)[0]
    expected = model(torch.tensor([prompt])).logits
    for path in (tmp_path / "small.gguf", tmp_path / "folder"):
        read = Policy(str(path))
        assert read.render([{"role": "user", "content": tasks.arithmetic("train", 0, 1)[0].prompt}]) == prompt and read.end_ids == policy.end_ids
        assert torch.allclose(read.model(torch.tensor([prompt])).logits, expected, atol=1e-5) and read.max_length == 256


def test_the_cache_that_grows_and_grouped_attention_change_nothing(policy):
    """Decoding token by token, through more positions than a buffer holds at first, equals one forward pass of transformers' own attention."""
    completion, = generate(policy, [Request(prompts(policy, 1)[0], 150, 3.0, 5)])  # hot, so that it goes on for long
    plain = Policy(str(ROOT / "tiny"))
    plain.model.set_attn_implementation("sdpa")
    prompt = prompts(policy, 1)[0]
    expected = (plain.model(torch.tensor([prompt + completion.ids])).logits[0] / 3.0).log_softmax(-1)
    expected = expected[len(prompt) - 1:-1].gather(-1, torch.tensor(completion.ids)[:, None])[:, 0]
    assert len(completion.ids) > 64 and torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)
