"""Sampling with vLLM, for GPUs: the same protocol and records as `generate`'s; needs `pip install 'exoalign[vllm]'`.

Token ids go in and come out, each (prompt, k) with a seed of its own; vLLM's cache of prefixes shares a prompt's prefill. The
engine runs with `logprobs_mode="processed_logprobs"`: log-probs of the drawn tokens after temperature, top-k and top-p, which
is what drew them. It tells one kind only, so those of the model are known where nothing is truncated, and None elsewhere.
Temperatures below 0.01 are not the asked ones in vLLM, so they are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, GenerationConfig

from exoalign.adapters import is_adapter_folder
from exoalign.data.tokenize import vocabulary
from exoalign.errors import ModelError
from exoalign.finished import fingerprint_of
from exoalign.groups import Group, Prompt
from exoalign.models import context_length, identity, resolve, token_ids
from exoalign.sampling.encode import encode_prompts
from exoalign.sampling.protocol import Draw, Finish, SamplingSettings, batches, numbered, sampled

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Job = tuple[int, int]
LOWEST_TEMPERATURE = 0.01


class VllmSampler:
    """Samples from a causal model with vLLM.

    Args:
        path: a folder with a whole model, a hub id, or `demo`.
        tokenizer: its tokenizer.
        dtype: the type to compute in, as vLLM names it.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: run the Python code that the model's repository brings.
        batch_size: completions that are handed over together, and kept together once they are done.
        name: the model's name, kept in the provenance.
        report: called with the number of completions that a batch has finished.
        engine: further arguments of `vllm.LLM`, e.g. tensor_parallel_size.

    Raises:
        ModelError: if vLLM is not installed, the folder holds an adapter, or no token ends a completion.
    """

    def __init__(
        self,
        path: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: str = "bfloat16",
        revision: str | None = None,
        trust_remote_code: bool = False,
        batch_size: int = 1024,
        name: str = "",
        report: Callable[[int], None] | None = None,
        engine: dict[str, Any] | None = None,
    ) -> None:
        self._vllm = need_vllm()
        source = resolve(path)
        if is_adapter_folder(source):
            raise ModelError(
                f"model {path} is an adapter, which vLLM is not given: merge it first with `exoalign merge`"
            )
        self.tokenizer, self.dtype, self.batch_size, self.name = tokenizer, dtype, batch_size, name
        self.report = report or (lambda n: None)
        self.vocabulary = vocabulary(tokenizer)
        self.fingerprint = fingerprint_of(identity(path, revision))
        self.context = context_length(path, revision=revision, trust_remote_code=trust_remote_code)
        self.llm = self._vllm.LLM(
            model=source,
            tokenizer=source,
            dtype=dtype,
            revision=revision,
            tokenizer_revision=revision,
            trust_remote_code=trust_remote_code,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",  # nothing of the model's own settings: no top-k unseen
            **(engine or {}),
        )
        self.ends = sorted({*_own_ends(source, revision, trust_remote_code), *token_ids(tokenizer.eos_token_id)})
        if not self.ends:
            raise ModelError("the tokenizer has no end-of-sequence token, so a completion has no end; set `eos_token`")

    def encode(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, sources: Sequence[str] | None = None
    ) -> list[list[int]]:
        """Token ids of the prompts; see `Sampler`."""
        names = sources or numbered(prompts)
        return encode_prompts(self.tokenizer, prompts, names, context=self.context, room=settings.max_new_tokens)

    def draw(
        self,
        prompts: Sequence[Prompt],
        settings: SamplingSettings,
        sources: Sequence[str] | None = None,
        *,
        skip: Collection[Job] = (),
    ) -> Iterator[list[Draw]]:
        """Completions, those of a batch at a time; see `Sampler`.

        Raises:
            DataError: as `encode`.
            ModelError: if the temperature is one that vLLM does not take.
        """
        if settings.temperature < LOWEST_TEMPERATURE:
            raise ModelError(
                f"sample.temperature is {settings.temperature:g}; vLLM takes no lower one than {LOWEST_TEMPERATURE:g}"
            )
        ids, done = self.encode(prompts, settings, sources), set(skip)
        for batch in batches([len(p) for p in ids], settings.k, self.batch_size, done):
            outputs = self.llm.generate(
                [{"prompt_token_ids": ids[i]} for i, _ in batch],
                [self._params(settings, job) for job in batch],
                use_tqdm=False,
            )
            drawn = [
                self._draw(job, output.outputs[0], settings)
                for job, output in zip(batch, outputs, strict=True)
                if job not in done
            ]
            yield drawn
            self.report(len(drawn))

    def sample(
        self, prompts: Sequence[Prompt], settings: SamplingSettings, sources: Sequence[str] | None = None
    ) -> list[Group]:
        """K completions for each prompt; see `Sampler`."""
        return sampled(self, prompts, settings, sources)

    def provenance(self, settings: SamplingSettings) -> dict[str, Any]:
        """What is kept with each group; see `Sampler`. The fingerprint is of the model's files."""
        sampler = {
            "backend": "vllm",
            "model": self.name,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            **settings.as_dict(),
        }
        return {"tokenizer": self.vocabulary, "sampler": sampler}

    def _params(self, settings: SamplingSettings, job: Job) -> Any:
        return self._vllm.SamplingParams(
            n=1,
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k or -1,  # -1 keeps all in every version
            max_tokens=settings.max_new_tokens,
            seed=seed_of(settings.seed, *job),
            stop=list(settings.stop) or None,
            stop_token_ids=self.ends,
            include_stop_str_in_output=False,
            skip_special_tokens=True,
            logprobs=0,  # of the drawn token alone
        )

    def _draw(self, job: Job, output: Any, settings: SamplingSettings) -> Draw:
        """vLLM says "stop" for end tokens (their id, or None) and stop strings (the string) alike."""
        ids = tuple(int(token) for token in output.token_ids)
        finish: Finish = "length"
        if output.finish_reason == "stop":
            finish = "stop_string" if isinstance(output.stop_reason, str) else "stop"
        logprob = sum(float(step[token].logprob) for token, step in zip(ids, output.logprobs, strict=True))
        return Draw(*job, ids, str(output.text), logprob, None if settings.truncated else logprob, finish)


def _own_ends(source: str, revision: str | None, trust_remote_code: bool) -> list[int]:
    """The end tokens that the model's files name."""
    try:
        found = GenerationConfig.from_pretrained(source, revision=revision or "main").eos_token_id
    except OSError:  # it has no such file
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=trust_remote_code)
        found = getattr(config.get_text_config(), "eos_token_id", None)
    return token_ids(found)


def seed_of(seed: int, prompt: int, k: int) -> int:
    """The seed of a completion's own random numbers, of 63 bits."""
    digest = hashlib.sha256(f"{seed} {prompt} {k}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def need_vllm() -> Any:
    """The module.

    Raises:
        ModelError: if it is not installed.
    """
    try:
        import vllm
    except ImportError as error:
        raise ModelError(
            "sample.backend is vllm, which is not installed: pip install 'exoalign[vllm]', or choose transformers"
        ) from error
    return vllm
