"""The policy: the one language model that plays both roles, and log-probabilities of completions.

    policy = Policy("tiny")
    prompt_ids = policy.render([{"role": "user", "content": "What is 6 * 7?"}])
    logprobs_K, entropy_K = CompletionLogprobs(policy)(collate(samples, policy.pad_id))

Rendering is the only way from a conversation to tokens. Sampling is engines/. Shapes: B rows, T
positions, V vocabulary, H hidden size, K completion tokens.

Test: `pytest tests/test_policy.py`. Read next: sandbox.py.
"""

import pathlib
from dataclasses import dataclass

import torch
from torch.nn.functional import log_softmax
from torch.utils.checkpoint import checkpoint

from data_types import Sample
from lib.chat import ChatTemplate
from lib.loading import load_model, special_ids
from lib.ways import FAST, Head, context_length, text_config

# Logits that exist at the same time in training. Few chunks on a GPU: each adds to a bf16 gradient.
CHUNK_LOGITS = 1 << 26  # 256 MiB in fp32
GPU_CHUNK_LOGITS = 1 << 28


class Policy:
    """A causal language model with its tokenizer and chat template."""

    def __init__(
        self,
        path: str,
        device="cpu",
        max_length=0,
        dtype=torch.float32,
        load_device=None,
        weights_dtype=None,
    ):
        """
        Args:
            path: a folder in Hugging Face format, a Hub id, or a .gguf file.
            device: where it computes.
            max_length: max tokens of a prompt and its completion together; 0: the model's own.
            dtype: what the forward pass computes in.
            load_device: where the weights are put first, if not on `device`.
            weights_dtype: of the weights; by default fp32, or fp64 for float64.

        Raises:
            UserError: there is no such model, or it can't be used.
        """
        self.path = path
        self.device = torch.device(device)
        self.dtype = dtype
        weights_dtype = weights_dtype or torch.promote_types(dtype, torch.float32)
        self.tokenizer, self.model = load_model(path, weights_dtype)
        self.model.to(load_device or device).eval()
        limit = context_length(self.model)
        self.max_length = min(limit, max_length or limit)
        self.way, self.note = FAST, "unchecked"  # lib/model_check.py
        self.chat = ChatTemplate(path, self.tokenizer, self.max_length)
        self.end_ids, self.pad_id = special_ids(path, self.tokenizer, self.model, self.chat)

    def render(self, messages: list[dict]) -> tuple[int, ...]:
        """The token ids of a conversation, up to where the assistant speaks next.

        No thinking, as in the paper's runs.
        """
        return self.chat.to_ids(tuple((m["role"], m["content"]) for m in messages))

    def text(self, ids) -> str:
        """What a completion says: its text without special tokens."""
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def save(self, folder: pathlib.Path, weights: dict | None = None) -> None:
        """Write a Hugging Face folder. weights: where the model holds only its rank's part."""
        self.model.save_pretrained(folder, state_dict=weights)
        self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class Batch:
    """Token rows, and where in them the K completion tokens are, sample by sample."""

    ids_B_T: torch.Tensor
    position_B_T: torch.Tensor
    mask: torch.Tensor  # (B, T), or (B, 1, T, T) for rows of several samples (lib/prefix_sharing)
    source_K: torch.Tensor  # flat position (b * T + t) whose output predicts the token
    target_K: torch.Tensor  # the token


def collate(samples: list[Sample], pad_id: int, device="cpu") -> Batch:
    """Right-padded rows, one per sample."""
    B, T = len(samples), max(len(sample) for sample in samples)
    ids_B_T = torch.full((B, T), pad_id)
    mask_B_T = torch.zeros(B, T, dtype=torch.long)
    source_K, target_K = [], []

    for b, sample in enumerate(samples):
        prompt_length, length = len(sample.prompt_ids), len(sample)
        ids_B_T[b, :length] = torch.tensor(sample.prompt_ids + sample.completion_ids)
        mask_B_T[b, :length] = 1
        # What was sampled is trained, the end token included. Never `ids != pad_id`: where the pad
        # token is also the end token, that would leave the end untrained.
        source_K += range(b * T + prompt_length - 1, b * T + length - 1)
        target_K += sample.completion_ids

    return Batch(
        ids_B_T=ids_B_T.to(device),
        position_B_T=torch.arange(T, device=device).expand(B, T),
        mask=mask_B_T.to(device),
        source_K=torch.tensor(source_K, device=device),
        target_K=torch.tensor(target_K, device=device),
    )


class CompletionLogprobs(torch.nn.Module):
    """Log-probabilities of completion tokens, with gradient: what DDP wraps.

    The head runs on completion positions only, in chunks that are computed again in the backward
    pass: logits of a 150k vocabulary for 8k tokens never exist at once.
    """

    def __init__(self, policy: Policy, model=None):  # model: another one, such as a reference
        super().__init__()
        self.model = model or policy.model
        self.dtype = policy.dtype
        self.head = Head(self.model)
        num_logits = GPU_CHUNK_LOGITS if policy.device.type == "cuda" else CHUNK_LOGITS
        self.chunk = max(16, num_logits // text_config(self.model).vocab_size)  # positions

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """logprobs_K, and entropy_K of the distributions (without gradient)."""
        is_bf16 = self.dtype == torch.bfloat16
        with torch.autocast(batch.ids_B_T.device.type, self.dtype, enabled=is_bf16):
            hidden_B_T_H = self.model.base_model(
                input_ids=batch.ids_B_T,
                attention_mask=batch.mask,
                position_ids=batch.position_B_T,
                use_cache=False,
            ).last_hidden_state
            hidden_K_H = hidden_B_T_H.flatten(0, 1)[batch.source_K]
            chunks = zip(hidden_K_H.split(self.chunk), batch.target_K.split(self.chunk))
            parts = [checkpoint(self.score, *chunk, use_reentrant=False) for chunk in chunks]
        logprobs, entropies = zip(*parts)
        return torch.cat(logprobs), torch.cat(entropies)

    def score(self, hidden_K_H, target_K):
        logits_K_V = self.head(hidden_K_H)
        dtype = torch.promote_types(logits_K_V.dtype, torch.float32)  # bf16 is too coarse for log p
        logprobs_K_V = log_softmax(logits_K_V, dim=-1, dtype=dtype)
        with torch.no_grad():
            entropy_K = -(logprobs_K_V.exp() * logprobs_K_V).sum(dim=-1)
        return logprobs_K_V.gather(-1, target_K[:, None]).squeeze(-1), entropy_K
