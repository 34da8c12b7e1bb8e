"""The policy: loading, saving, log-probabilities of completions in plain padded rows."""

import json

import pytest
import torch
from conftest import ROOT, prompts
from test_engine_hf import generate

import sft
import tasks
from data_types import Sample
from engines.hf import Request
from policy import CompletionLogprobs, Policy, collate


def test_save_and_load_give_the_same_model(policy, tmp_path):
    policy.save(tmp_path / "copy")
    copy = Policy(str(tmp_path / "copy"))
    request = Request(prompts(policy, 1)[0], 16, 1.0, 3)
    assert generate(copy, [request]) == generate(policy, [request])


def test_tiny_is_tiny():
    sizes = [path.stat().st_size for path in (ROOT / "tiny").iterdir() if path.is_file()]
    assert sum(sizes) <= 4 << 20


def test_logprobs_of_completions_whatever_the_padding(policy):
    """A row for each sample, of different lengths: the numbers of one forward pass each."""
    samples = []
    for i, prompt in enumerate(prompts(policy, 4)):
        (completion,) = generate(policy, [Request(prompt, 6 + 3 * i, 1.0, i)])
        samples.append(Sample(prompt, completion.ids, completion.logprobs, 1.0, "executor"))
    logprobs_K, entropy_K = CompletionLogprobs(policy)(collate(samples, policy.pad_id))
    expected = [logprob for sample in samples for logprob in sample.sampler_logprobs]
    assert torch.allclose(logprobs_K, torch.tensor(expected), atol=1e-4)
    assert len(entropy_K) == len(expected) and (entropy_K >= 0).all()


def test_the_end_token_is_trained_and_padding_is_not():
    """Also where the pad token is the end token."""
    samples = [
        Sample((5, 6), (7, 1), (0.0,) * 2, 1.0, "executor"),
        Sample((5,), (8, 9, 1), (0.0,) * 3, 1.0, "executor"),
    ]
    batch = collate(samples, pad_id=1)
    assert batch.target_K.tolist() == [7, 1, 8, 9, 1]
    assert batch.source_K.tolist() == [1, 2, 4, 5, 6]
    longer = collate([*samples, Sample((5,) * 9, (1,), (0.0,), 1.0, "executor")], pad_id=1)
    assert longer.target_K.tolist() == [7, 1, 8, 9, 1, 1]


def write_gguf(path, model, tokenizer):
    """A small Llama and its tokenizer as a GGUF file of fp32 tensors."""
    import gguf

    c = model.config
    vocabulary = tokenizer.get_vocab()
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.get))
    writer.add_token_merges([" ".join(pair) for pair in parts["model"]["merges"]])
    special = {token["content"] for token in parts["added_tokens"]}
    writer.add_token_types(
        [3 if token in special else 1 for token in sorted(vocabulary, key=vocabulary.get)]
    )
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, tensor in model.named_parameters():
        kind, *rest = name.removeprefix("model.").removesuffix(".weight").split(".", 2)
        if kind == "layers":
            other = f"blk.{rest[0]}.{names[rest[1]]}"
        else:
            other = {"embed_tokens": "token_embd", "norm": "output_norm"}[kind]
        if other.endswith(("attn_q", "attn_k")):
            # llama.cpp turns pairs of neighbours, transformers halves.
            heads = c.num_attention_heads if other.endswith("q") else c.num_key_value_heads
            pairs = tensor.reshape(heads, 2, -1, c.hidden_size).swapaxes(1, 2)
            tensor = pairs.reshape(tensor.shape)
        writer.add_tensor(f"{other}.weight", tensor.detach().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_read_and_saved_as_a_folder(tmp_path):
    """The weights, the tokenizer and the chat template of a GGUF file; the folder written of it is
    the same model. (GGUF has a name for how text is split into words, not the pattern itself: hence
    the tokenizer that splits as GPT-2's does.)"""
    pytest.importorskip("gguf", reason="gguf is not installed (tests/requirements.txt)")
    pytest.importorskip("accelerate", reason="accelerate is not installed (tests/requirements.txt)")
    from transformers import LlamaConfig, LlamaForCausalLM

    policy = Policy(str(ROOT / "tiny" / "arithmetic"))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(policy.tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    write_gguf(tmp_path / "small.gguf", model, policy.tokenizer)
    sft.main(["--model", str(tmp_path / "small.gguf"), "--out", str(tmp_path / "folder")])
    question = tasks.load("registry", "train", 0, 1)[0].prompt
    prompt = prompts(policy, 1)[0]
    expected = model(torch.tensor([prompt])).logits
    for path in (tmp_path / "small.gguf", tmp_path / "folder"):
        loaded = Policy(str(path))
        assert loaded.render([{"role": "user", "content": question}]) == prompt
        assert loaded.end_ids == policy.end_ids and loaded.max_length == 256
        assert torch.allclose(loaded.model(torch.tensor([prompt])).logits, expected, atol=1e-5)
