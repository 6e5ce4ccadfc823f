"""generation_config.json of a checkpoint folder, read in full: what cannot be followed is named, never passed over."""

import dataclasses
from pathlib import Path
from typing import Any

from jvidprune.errors import JvidpruneError, quoted
from jvidprune.models.checkpoint.folder import read_json
from jvidprune.models.sampling import GREEDY, Sampling, check_stops

FILE = "generation_config.json"

_DEFAULT_TOP_K = 50
"""What transformers draws from where it samples and top_k is not given."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0,),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "constraints": (),
    "force_words_ids": (),
    "bad_words_ids": ([],),
    "sequence_bias": ([], {}),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "max_time": (),
    "guidance_scale": (1,),
    "watermarking_config": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "top_h": (),
    "token_healing": (False,),
    "remove_invalid_values": (False,),
}
"""Settings that change answers and are not supported, with the values besides null at which they change none."""

_KNOWN = frozenset(
    {
        # Ids that other files tell too, or that only padded batches need.
        *("bos_token_id", "pad_token_id", "eos_token_id", "decoder_start_token_id"),
        # How an answer is computed, not which one.
        *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory", "compile_config"),
        *("disable_compile", "continuous_batching_config", "prefill_chunk_size", "use_mtp", "speculation_type"),
        *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        *("prompt_lookup_num_tokens", "max_matching_ngram_size", "assistant_early_exit", "assistant_lookbehind"),
        *("target_lookbehind", "assistant_ensemble_weight"),
        # Beam search alone, which is refused by the number of its beams.
        *("length_penalty", "early_stopping"),
        # The order of tokens stays, and so do answers.
        "renormalize_logits",
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
        # Followed, see `read_generation`; of max_length and max_new_tokens transformers reads the second.
        *("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
        *("max_new_tokens", "max_length", "stop_strings"),
        *("transformers_version", "_from_model_config", "chat_format", "_commit_hash"),
    }
)
"""Settings that are followed, or that change no answer."""


@dataclasses.dataclass(frozen=True)
class FolderGeneration:
    """How a checkpoint folder wants answers to be generated.

    Attributes:
      sampling: greedy without do_sample, whose penalty holds all the same.
      max_new_tokens: longest answer, None where the file says nothing.
      stop: texts that end an answer.
    """

    sampling: Sampling = GREEDY
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()


def read_generation(folder: str | Path) -> FolderGeneration:
    """What generation_config.json says, with the defaults of transformers for what it leaves out; greedy without one.

    End-of-sequence ids are read by `models.tokenizer.end_ids`.

    Raises:
      JvidpruneError: no JSON object, a value that makes no sense, or settings that would change answers and are not
        supported, all named.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return FolderGeneration()
    given = {key: value for key, value in read_json(path).items() if value is not None}
    odd = [key for key, neutral in _NEUTRAL.items() if key in given and given[key] not in neutral]
    odd += [key for key in given if key not in _NEUTRAL and key not in _KNOWN]
    if "max_length" in given and "max_new_tokens" not in given:
        odd.append("max_length")
    if odd:
        listed = ", ".join(f"{key} {quoted(given[key], 60)}" for key in odd)
        raise JvidpruneError(f"{path} asks for {quoted(listed, 400)}, which is not supported; give your own settings.")
    sampled = given.get("do_sample", False)
    if not isinstance(sampled, bool):
        raise JvidpruneError(f"{path}: do_sample must be true or false, got {quoted(sampled)}.")
    found: dict[str, Any] = {"repetition_penalty": given.get("repetition_penalty", 1.0)}
    if sampled:
        found |= {"temperature": 1.0, "top_k": _DEFAULT_TOP_K}
        found |= {key: given[key] for key in ("temperature", "top_p", "top_k", "min_p") if key in given}
        if found["temperature"] == 0:
            raise JvidpruneError(f"{path}: do_sample needs a temperature above 0.")
        if found.get("top_p") == 0:
            # The most probable token alone, as transformers has it.
            found = {"repetition_penalty": found["repetition_penalty"]}
    most = given.get("max_new_tokens", 1)
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise JvidpruneError(f"{path}: max_new_tokens must be at least 1.")
    try:
        sampling, stop = Sampling(**found), check_stops(given.get("stop_strings"))
    except (JvidpruneError, TypeError) as error:
        raise JvidpruneError(f"{path}: {error}") from error
    return FolderGeneration(sampling, given.get("max_new_tokens"), stop)
