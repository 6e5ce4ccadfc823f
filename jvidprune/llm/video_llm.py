"""A video LLM that reads reduced videos: load, encode, reduce, ask. Every step can be called by itself.

llm = VideoLLM.load()
video = llm.encode("clip.mp4", reducer="flashvid")
print(llm.ask(video, "What happens?", reducer="flashvid", ratio=0.1).text)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jvidprune.errors import JvidpruneError
from jvidprune.llm.batch import Prompt, answer_many
from jvidprune.llm.conventions import check_convention
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo, prompt_positions, reduce_video
from jvidprune.llm.folder import family_settings
from jvidprune.llm.opening import Source, add_evidence, encode_frames, open_source, reduce_frames
from jvidprune.llm.prompts.builder import PromptBuilder
from jvidprune.llm.prompts.registry import builder_of
from jvidprune.llm.prompts.slots import SlotMap
from jvidprune.llm.prompts.templates import CHAT, chat_template
from jvidprune.llm.stages import Stage, StageClock, enable_compilation_cache
from jvidprune.models.checkpoint.dtypes import AUTO
from jvidprune.models.checkpoint.folder import UNTRAINED_MARK
from jvidprune.models.checkpoint.load import LoadedModel, load_model, read_config
from jvidprune.models.checkpoint.processor import video_processor
from jvidprune.models.embedded import EMBEDDED
from jvidprune.models.fused import AttentionKind
from jvidprune.models.generate import check_sampling
from jvidprune.models.positions import MropeRule, check_rule
from jvidprune.models.settings import Convention, FamilySettings
from jvidprune.models.text_tower import TEXT_TOWER, TextTower, check_shared, load_text_tower
from jvidprune.models.tokenizer import Tokenizer, end_ids, load_tokenizer
from jvidprune.ops.newline import NewlineKind
from jvidprune.reducers.prompt_rules import PositionRule, check_positions
from jvidprune.reducers.protocol import Reducer, of_frames, with_defaults
from jvidprune.reducers.registry import for_model
from jvidprune.reducers.serialise import SavedPruning, load_pruning
from jvidprune.stts.attach import attach, attach_released
from jvidprune.stts.saved import read_stts
from jvidprune.tokens import QUESTION
from jvidprune.video.decode import Clip, read_frames
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.preprocess import Patches

Method = Reducer | str
"""A reducer, or its text for `VideoLLM.reducer`, such as "flashvid" or "flashvid:alpha=0.5"."""

Video = Source | EncodedVideo | ReducedVideo
"""What a question can be asked about."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer and what it cost.

    Attributes:
      question, text: what was asked and answered.
      token_ids: generated ids, end of sequence excluded.
      reducer: method name.
      ratio: retention ratio asked for.
      kept, visual: tokens kept and tokens there were, newlines not counted.
      prompt: prompt length in tokens.
      positions: rule of the kept tokens' positions.
      stages: decode, encode, reduce, prefill, generate.
      untrained: the weights are random.
    """

    question: str
    text: str
    token_ids: tuple[int, ...]
    reducer: str
    ratio: float
    kept: int
    visual: int
    prompt: int
    positions: PositionRule
    stages: tuple[Stage, ...]
    untrained: bool

    def record(self) -> dict[str, Any]:
        """Plain values for JSON."""
        stages = [dataclasses.asdict(stage) | {"per_second": stage.rate} for stage in self.stages]
        return dataclasses.asdict(self) | {"token_ids": list(self.token_ids), "stages": stages}


@dataclasses.dataclass(frozen=True)
class VideoLLM:
    """A loaded model with its tokenizer and the settings of its family.

    Attributes:
      loaded: model and config.
      tokenizer: of its folder.
      settings: of its family.
      pruning: reducer and ratio that jvidprune_config.json of its folder names, None without that file; `encode`,
        `reduce` and `ask` use them where the caller gives none.
      text_tower: that shares its space with the vision tower, for methods that need "joint_text"; None for none.
    """

    loaded: LoadedModel
    tokenizer: Tokenizer
    settings: FamilySettings
    pruning: SavedPruning | None = None
    text_tower: TextTower | None = None

    @classmethod
    def load(
        cls,
        source: str | Path | None = None,
        *,
        dtype: Any = AUTO,
        mesh: Mesh | None = None,
        progress: Callable[[int, int, str], None] | None = None,
        template: str | None = None,
        pooling_head: str | Path | None = None,
        text_tower: str | Path | None = None,
        attention: AttentionKind = "auto",
        revision: str | None = None,
        positions: PositionRule | None = None,
        convention: Convention | None = None,
        mrope_rule: MropeRule | None = None,
        allow_code: bool = False,
    ) -> "VideoLLM":
        """Loads a checkpoint folder or hub id; from here on compiled programs are kept on disk between runs.

        A scorer among the tensors of the checkpoint (STTS's released ones) or beside them (`jvidprune train stts`) is
        attached, see `stts.attach`. A
        jvidprune_config.json in the folder (`jvidprune export --reducer ...`, `reducers.serialise`) is read as its
        `pruning`, and the positions of kept tokens that it declares hold for methods that are not told others.

        Args:
          source: folder or hub id; None for the embedded model, a tiny LLaVA-OneVision trained on generated clips.
          dtype: of parameters and activations: float32, bfloat16 or float16, or "auto" for that of the checkpoint:
            what its config.json names, else what most of its numbers are stored in.
          mesh: of `parallel.make_mesh`; towers divide frames over it, prompts their rows, both their heads, and every
            device reduces the whole video.
          progress: see `load_model`.
          template: of prompts: one of the families' by name, "chat" for the chat template in the folder, or None for
            that of the convention.
          pooling_head: folder or hub id of the original SigLIP, for methods that need its head; see `load_model`.
          text_tower: folder or hub id of the original SigLIP, for methods that compare tokens with the question in the
            space of its two towers (CDPruner with relevance="joint"): its text tower is loaded, and its pooling head
            unless `pooling_head` names another. By default the folder text_tower of a local checkpoint, if it has one.
          attention: which code computes attention, see `models.fused.AttentionKind`.
          revision: branch, tag or commit of a hub id.
          positions: of kept tokens, for all methods: "renumbered" or "original"; by default each method's setting, else
            the folder's declaration, else the rule of the method's reference, see `prompt_rules.position_rule`.
          convention: whose sampling, pixel limits, resizing, template, positions and markers: "released" (the authors'
            code), "transformers" or "lmms-eval", see `llm.conventions`; None for what jvidprune_config.json of
            the folder names, else "released".
          mrope_rule: of a Qwen-VL family in place of the convention's, see `models.positions.MropeRule`; None
            likewise.
          allow_code: import the module of a reducer of somebody's own that jvidprune_config.json of the folder names;
            it runs with all your rights.

        Raises:
          JvidpruneError: not a checkpoint of a known family, a quantised one, an adapter, anything wrong with its
            files, an unknown template, or a convention or M-RoPE rule that the checkpoint's family does not have.
        """
        source = EMBEDDED if source is None else source
        check_positions(positions)
        for name, check in ((convention, check_convention), (mrope_rule, check_rule)):
            if name is not None:
                check(name)
        if convention is not None or mrope_rule is not None:
            # One that the family does not have is refused before any weights are read.
            family, _, folder = read_config(source, revision)
            family_settings(family, folder, convention, mrope_rule)
        enable_compilation_cache()
        tower = None
        if text_tower is None and (Path(source) / TEXT_TOWER).is_dir():
            text_tower = Path(source) / TEXT_TOWER
        if text_tower is not None:
            check_shared(*read_config(source, revision)[:2], text_tower)
            tower = load_text_tower(text_tower)
            pooling_head = tower.folder if pooling_head is None else pooling_head
        loaded = load_model(
            source,
            dtype=dtype,
            mesh=mesh,
            progress=progress,
            pooling_head=pooling_head,
            attention=attention,
            revision=revision,
        )
        settings = family_settings(loaded.family, loaded.folder, convention, mrope_rule)
        settings = dataclasses.replace(settings, positions=positions)
        if template is None and settings.own_chat and chat_template(loaded.folder) is not None:
            template = CHAT
        if template is not None:
            settings = dataclasses.replace(settings, template=template)
        pruning = load_pruning(loaded.folder, allow_code=allow_code)
        if pruning is not None and pruning.backbone not in (None, loaded.family):
            raise JvidpruneError(
                f"{loaded.folder} is a {loaded.family} checkpoint with pruning settings made for {pruning.backbone}."
            )
        llm = cls(loaded, load_tokenizer(loaded.folder), settings, pruning, tower)
        # Settings of the folder that make no sense and missing templates are refused here, not at the first video.
        _ = llm.pixels
        llm.prompts.check()
        trained = read_stts(loaded.folder, heads=loaded.config.vision.heads, dtype=loaded.dtype)
        llm = attach_released(llm) if trained is None else attach(llm, *trained)
        if pruning is None:
            return llm
        bound = with_defaults(pruning.reducer).bind(llm.loaded.model)
        return dataclasses.replace(llm, pruning=dataclasses.replace(pruning, reducer=bound))

    @functools.cached_property
    def pixels(self) -> Callable[[np.ndarray], np.ndarray | Patches]:
        """(T, H, W, 3) uint8 frames to what the tower reads, with the settings of the folder's video processor."""
        return self.settings.pixels(self.loaded.config, self.processor)

    @functools.cached_property
    def processor(self) -> Mapping[str, Any]:
        """What the folder says of its video processor."""
        return video_processor(self.loaded.folder)

    @property
    def untrained(self) -> bool:
        """Whether the checkpoint says that its weights are random."""
        return (self.loaded.folder / UNTRAINED_MARK).exists()

    @functools.cached_property
    def eos_ids(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return end_ids(self.loaded.folder, self.tokenizer)

    def sample(
        self,
        path: str | Path,
        *,
        frames: int | None = None,
        fps: float | None = None,
        limits: Limits = DEFAULT,
        progress: Callable[[int, int], None] | None = None,
    ) -> Clip:
        """Decodes the frames this model looks at.

        Args:
          path: video file.
          frames: how many at most; by default what the family was evaluated with, or what the folder says.
          fps: frames a second instead, by the family's own rule and limits, with `frames` as the most.
          limits: what is accepted of the file.
          progress: called with (frames read, frames wanted) as frames come in.

        Raises:
          JvidpruneError: a file that cannot be read, a picture that the family has no way to read, no
            frame, or no rate above 0.
        """
        return read_frames(path, wish=self.settings.wish(frames, fps), limits=limits, progress=progress)

    def encode(
        self,
        source: Source,
        *,
        reducer: Method | None = None,
        needs: frozenset[str] | None = None,
        question: str | None = None,
        fps: float | None = None,
        times: Sequence[float] | None = None,
    ) -> EncodedVideo:
        """Tokens of a video with the evidence that a method needs.

        Args:
          source: a file, which `sample` reads; (T, H, W, 3) uint8 frames; or a clip.
          reducer: whose evidence is attached. The question that some read may come later, with `reduce` or `ask`.
          needs: names of `tokens.EVIDENCE` to attach besides. With neither, what the folder's own reducer needs, if it
            names one. What a later method lacks is computed when it is asked for.
          question: what the evidence "text" holds the embeddings of.
          fps: rate that a file is sampled at, or that frames stand at.
          times: seconds of each of the frames, in place of a rate.

        Raises:
          JvidpruneError: a file that cannot be read, no frames, frames without times where the family writes these
            into its prompts, or evidence that this checkpoint cannot give.
        """
        wanted = frozenset() if needs is None else frozenset(needs)
        method = self._chosen(reducer) if needs is None else None if reducer is None else self.reducer(reducer)
        if method is not None:
            wanted |= method.needs if question is not None else method.needs - QUESTION
        return encode_frames(self, open_source(self, source, fps, times), wanted, question)

    def _chosen(self, reducer: Method | None) -> Reducer | None:
        """The reducer asked for, else the folder's own."""
        if reducer is None:
            return None if self.pruning is None else self.pruning.reducer
        return self.reducer(reducer)

    def with_evidence(self, video: EncodedVideo, reducer: Method, question: str | None = None) -> EncodedVideo:
        """The video with the evidence that a method needs; what is there already stays as it is.

        Args:
          video: from `encode`.
          reducer: the method.
          question: what "text" holds the embeddings of, for methods that read it; by default that of the video.

        Raises:
          JvidpruneError: evidence that is missing where the frames were not kept, that this checkpoint cannot give, or
            no question where the method reads it.
        """
        return add_evidence(self, video, self.reducer(reducer), question)

    def reducer(self, method: Method) -> Reducer:
        """A reducer with this family's published settings, from a text as for `registry.from_text`.

        "stts" is bound to the model. Settings that depend on the depth of the language model are set for this one's;
        see `registry.for_model`. What is a reducer already comes back as it is.

        Raises:
          JvidpruneError: unknown name or setting, or "stts" for a model without a scorer.
        """
        if not isinstance(method, str):
            return method
        return with_defaults(for_model(method, self.loaded.config)).bind(self.loaded.model)

    def reduce(
        self,
        video: Source | EncodedVideo,
        *,
        reducer: Method | None = None,
        ratio: float | None = None,
        question: str | None = None,
        positions: PositionRule | None = None,
    ) -> ReducedVideo:
        """Reduces a video once, for any number of questions.

        Args:
          video: from `encode`; evidence that it lacks is computed from its frames. Or what `encode` takes, which is
            encoded for this; of a method that makes tokens of other frames, these alone.
          reducer, ratio: method and retention ratio; by default the folder's own.
          question: for methods that read it; by default that of the video.
          positions: of the kept tokens in prompts, before all other settings of it; see `load`.

        Raises:
          JvidpruneError: an impossible ratio or budget, missing evidence, or no reducer or ratio given where the folder
            names none.
        """
        method = self._chosen(reducer)
        ratio = self.pruning.ratio if ratio is None and self.pruning is not None else ratio
        if method is None or ratio is None:
            raise JvidpruneError("encoded tokens need a reducer and a ratio.")
        if not isinstance(video, EncodedVideo):
            check_positions(positions)
            source = open_source(self, video, None, None)
            if of_frames(method):
                return dataclasses.replace(reduce_frames(self, source, method, ratio), positions=positions)
            video = self.encode(source, reducer=method, question=question)
        return reduce_video(self.with_evidence(video, method, question), method, ratio, positions=positions)

    def position_rule(self, videos: Sequence[ReducedVideo]) -> PositionRule:
        """The rule of positions that a prompt with these videos follows.

        Raises:
          JvidpruneError: videos that were told different rules.
        """
        settings = self.settings
        declared, reference = settings.declared_positions, settings.reference_positions
        return prompt_positions(videos, asked=settings.positions, declared=declared, reference=reference)

    @functools.cached_property
    def prompts(self) -> PromptBuilder:
        """How videos are written into prompts of this family."""
        return builder_of(self.settings)(self.loaded.config, self.settings, self.loaded.folder, self.tokenizer)

    def lay_out(self, videos: Sequence[ReducedVideo], question: str, reserve: int) -> tuple[SlotMap, np.ndarray]:
        """The slots of a prompt and its text ids in order; families that write time read it from the videos' clips.

        Raises:
          JvidpruneError: prompt and `reserve` tokens of an answer do not fit into the model's positions, or a video
            whose times are needed and not known.
        """
        ids = self.prompts.ids(videos, question)
        slots = self.prompts.lay_out(videos, ids, reserve=reserve, positions=self.position_rule(videos))
        return slots, np.concatenate([np.asarray(part, np.int32) for part in ids])

    @property
    def newline(self) -> NewlineKind:
        """Layout of the newline embeddings where a reducer declares none: the checkpoint's, else the family's."""
        return self.settings.newline_of(self.loaded.config)

    def ask(
        self,
        video: Video | list[Video] | tuple[Video, ...],
        question: str,
        *,
        reducer: Method | None = None,
        ratio: float | None = None,
        fps: float | None = None,
        times: Sequence[float] | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        clock: StageClock | None = None,
        positions: PositionRule | None = None,
    ) -> Answer:
        """Answers one question about a video.

        Args:
          video: anything that `encode` takes, or what it returned, which is reduced here; or what `reduce` made, for
            another question about the same tokens; or a list of these, for a prompt with several videos.
          question: what to ask; methods that read it are given it.
          reducer, ratio: method and retention ratio of what is reduced here; by default the folder's own.
          fps, times: of what is encoded here, as for `encode`.
          max_new_tokens: longest answer.
          temperature: 0 answers greedily, above 0 samples.
          top_p: share of probability that sampling draws from.
          seed: of sampling.
          clock: collects the stages' times.
          positions: of kept tokens, before all other settings of it; see `load`.

        Raises:
          JvidpruneError: what `encode` and `reduce` raise, or a prompt longer than the model's positions.
        """
        clock = clock or StageClock()
        check_sampling(max_new_tokens, temperature, top_p)
        check_positions(positions)
        videos = [
            one if isinstance(one, ReducedVideo) else self._reduced(one, question, reducer, ratio, fps, times, clock)
            for one in (video if isinstance(video, list | tuple) else [video])
        ]
        if positions is not None:
            videos = [dataclasses.replace(one, positions=positions) for one in videos]
        (reply,) = answer_many(
            self,
            [Prompt(videos, question)],
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seeds=seed,
            clock=clock,
        )
        return Answer(
            question=question,
            text=reply.text,
            token_ids=reply.token_ids,
            reducer=", ".join(dict.fromkeys(one.title for one in videos)),
            ratio=videos[0].ratio,
            kept=reply.kept,
            visual=reply.visual,
            prompt=reply.prompt,
            positions=self.position_rule(videos),
            stages=tuple(clock.stages),
            untrained=self.untrained,
        )

    def _reduced(
        self,
        video: Source | EncodedVideo,
        question: str,
        reducer: Method | None,
        ratio: float | None,
        fps: float | None,
        times: Sequence[float] | None,
        clock: StageClock,
    ) -> ReducedVideo:
        """The stages from a file or frames to a reduced video, each of them timed."""
        method = self._chosen(reducer)
        if not isinstance(video, EncodedVideo):
            if method is None or (ratio is None and self.pruning is None):
                raise JvidpruneError("a video needs a reducer and a ratio.")
            with clock("decode", "frames") as stage:
                source = open_source(self, video, fps, times)
                stage.tokens = len(source.frames if isinstance(source, Clip) else source)
            if of_frames(method):
                # What it makes is what is encoded.
                with clock("encode") as stage:
                    reduced = self.reduce(source, reducer=method, ratio=ratio)
                    stage.tokens = reduced.kept
                return reduced
            with clock("encode") as stage:
                video = encode_frames(self, source, method.needs, question)
                stage.tokens = jax.block_until_ready(video.tokens).layout().total
        elif fps is not None or times is not None:
            raise JvidpruneError("an encoded video has its times: leave fps= and times= out.")
        with clock("reduce") as stage:
            reduced = self.reduce(video, reducer=method, ratio=ratio, question=question)
            stage.tokens = reduced.kept
        return reduced
