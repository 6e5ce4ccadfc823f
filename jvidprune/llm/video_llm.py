"""A video LLM that reads reduced videos: load, encode, reduce, ask. Every step can be called by itself.

llm = VideoLLM.load()
video = llm.encode("clip.mp4", reducer="flashvid")
print(llm.ask(video, "What happens?", reducer="flashvid", ratio=0.1).text)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jvidprune.cuts.attended import check_attended
from jvidprune.errors import JvidpruneError
from jvidprune.fields import Count, checked
from jvidprune.llm.asking import Answer, Stream, Videos, answer_of, reduced_videos, sample_seeds
from jvidprune.llm.batch import answer_many
from jvidprune.llm.chat import Chat
from jvidprune.llm.encoded import EncodedVideo, ReducedVideo, maps_of, prompt_positions, reduce_video
from jvidprune.llm.generation import Generating, generation_of
from jvidprune.llm.loading import check_ways, folder_pruning, loaded_settings, shared_text_tower
from jvidprune.llm.opening import Source, add_evidence, check_method, encode_frames, open_source, reduce_frames
from jvidprune.llm.prompts.builder import PromptBuilder
from jvidprune.llm.prompts.messages import Asked, asked_of
from jvidprune.llm.prompts.registry import builder_of
from jvidprune.llm.prompts.slots import SlotMap
from jvidprune.llm.rows import Prompt
from jvidprune.llm.stages import StageClock, enable_compilation_cache
from jvidprune.models.checkpoint.dtypes import AUTO
from jvidprune.models.checkpoint.folder import UNTRAINED_MARK
from jvidprune.models.checkpoint.load import LoadedModel, load_model
from jvidprune.models.checkpoint.processor import video_processor
from jvidprune.models.embedded import EMBEDDED
from jvidprune.models.fused import AttentionKind
from jvidprune.models.positions import MropeRule
from jvidprune.models.quantised import Quantise
from jvidprune.models.settings import Convention, FamilySettings
from jvidprune.models.text_tower import TextTower
from jvidprune.models.tokenizer import Tokenizer, end_ids, load_tokenizer
from jvidprune.ops.newline import NewlineKind
from jvidprune.reducers.own import check_given
from jvidprune.reducers.prompt_rules import PositionRule, check_positions
from jvidprune.reducers.protocol import Reducer, inner_stages, of_frames, with_defaults
from jvidprune.reducers.registry import for_model
from jvidprune.reducers.serialise import SavedPruning
from jvidprune.stts.attach import attach, attach_released
from jvidprune.stts.saved import read_stts
from jvidprune.tokens import QUESTION
from jvidprune.video.decode import Clip, read_frames
from jvidprune.video.limits import DEFAULT, Limits
from jvidprune.video.preprocess import Patches

Method = Reducer | str
"""A reducer, or its text for `VideoLLM.reducer`, such as "flashvid" or "flashvid:alpha=0.5"."""


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
        quantise: Quantise | None = None,
        revision: str | None = None,
        positions: PositionRule | None = None,
        convention: Convention | None = None,
        mrope_rule: MropeRule | None = None,
        allow_code: bool = False,
    ) -> "VideoLLM":
        """Loads a checkpoint folder or hub id; from here on compiled programs are kept on disk between runs.

        A scorer among the tensors of the checkpoint (STTS's released ones) or beside them (`jvidprune train stts`) is
        attached, see `stts.attach`. A jvidprune_config.json in the folder (`jvidprune export --reducer ...`,
        `reducers.serialise`) is read as its `pruning`, and the positions of kept tokens that it declares hold for
        methods that are not told others.

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
          quantise: hold the language model's matrices in one byte each, "int8" or "fp8", see `models.quantised`.
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
        check_ways(source, revision, convention, mrope_rule)
        enable_compilation_cache()
        tower = shared_text_tower(source, revision, text_tower)
        if tower is not None and pooling_head is None:
            pooling_head = tower.folder
        loaded = load_model(
            source,
            dtype=dtype,
            mesh=mesh,
            progress=progress,
            pooling_head=pooling_head,
            attention=attention,
            quantise=quantise,
            revision=revision,
        )
        settings = loaded_settings(
            loaded, convention=convention, mrope_rule=mrope_rule, positions=positions, template=template
        )
        pruning = folder_pruning(loaded, allow_code=allow_code)
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
    def picture_model(self) -> Any:
        """The model as it encodes still pictures: the same arrays, where the family's config for these is another."""
        config, own = self.loaded.config, self.settings.config_of_pictures(self.loaded.config)
        if own == config:
            return self.loaded.model
        made = nnx.merge(*nnx.split(self.loaded.model))
        # Beside a scorer it is the model inside that encodes.
        made.base.config, made.base.vision.config = own, own.vision
        return made

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
        method = self.chosen(reducer) if needs is None else None if reducer is None else self.reducer(reducer)
        if method is not None:
            wanted |= method.needs if question is not None else method.needs - QUESTION
        opened = open_source(self, source, fps, times)
        if method is not None:
            check_method(self, opened, method)
        return encode_frames(self, opened, wanted, question)

    def chosen(self, reducer: Method | None) -> Reducer | None:
        """The reducer asked for, else the folder's own; None where it names none."""
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
          JvidpruneError: unknown name or setting, what is no reducer, or "stts" for a model without a scorer.
        """
        if not isinstance(method, str):
            return check_given(method)
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
          JvidpruneError: an impossible ratio or budget, missing evidence, cuts that the language model cannot have, or
            no reducer or ratio given where the folder names none.
        """
        method = self.chosen(reducer)
        ratio = self.pruning.ratio if ratio is None and self.pruning is not None else ratio
        if method is None or ratio is None:
            raise JvidpruneError("encoded tokens need a reducer and a ratio.")
        text = self.loaded.config.text
        check_attended(inner_stages(method, ratio), text.layers, text.attending)
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

    def lay_out(
        self,
        videos: Sequence[ReducedVideo],
        question: Asked,
        reserve: int,
        tail: Sequence[int] = (),
    ) -> tuple[SlotMap, np.ndarray]:
        """The slots of a prompt and its text ids in order; families that write time read it from the videos' clips.

        Args:
          videos: in the order of the prompt.
          question: behind the videos, or a conversation that says where they stand.
          reserve: tokens that will follow.
          tail: ids that go on behind the prompt.

        Raises:
          JvidpruneError: prompt and `reserve` tokens of an answer do not fit into the model's positions, or a video
            whose times are needed and not known.
        """
        ids = self.prompts.ids(videos, question)
        ids[-1] = [*ids[-1], *tail]
        maps, rule = maps_of(videos), self.position_rule(videos)
        slots = self.prompts.lay_out(maps, ids, reserve=reserve, positions=rule)
        return slots, np.concatenate([np.asarray(part, np.int32) for part in ids])

    @property
    def newline(self) -> NewlineKind:
        """Layout of the newline embeddings where a reducer declares none: the checkpoint's, else the family's."""
        return self.settings.newline_of(self.loaded.config)

    def ask(
        self,
        video: Videos,
        question: str,
        *,
        reducer: Method | None = None,
        ratio: float | None = None,
        fps: float | None = None,
        times: Sequence[float] | None = None,
        clock: StageClock | None = None,
        positions: PositionRule | None = None,
        system: str | None = None,
        samples: int = 1,
        **generating: Unpack[Generating],
    ) -> Answer:
        """Answers one question about a video.

        Args:
          video: anything that `encode` takes, or what it returned, which is reduced here; or what `reduce` made, for
            another question about the same tokens; or a list of these, for a prompt with several videos; or None, for
            text alone.
          question: what to ask; methods that read it are given it.
          reducer, ratio: method and retention ratio of what is reduced here; by default the folder's own.
          fps, times: of what is encoded here, as for `encode`.
          clock: collects the stages' times.
          positions: of kept tokens, before all other settings of it; see `load`.
          system: what the model is told before, in place of the template's own system turn.
          samples: answers, of as many seeds; those behind the first stand in `Answer.texts`. Each reads the prompt.
          **generating: length, sampling, stop texts and seed, see `llm.generation.Generating`.

        Raises:
          JvidpruneError: what `encode` and `reduce` raise, a prompt longer than the model's positions, or settings of
            generation that are out of range or not known.
        """
        generation = generation_of(self, generating)
        checked(samples, Count, "samples")
        clock = clock or StageClock()
        videos = reduced_videos(self, video, question, reducer, ratio, fps, times, clock, positions)
        sampling = generation.sampling
        replies = answer_many(
            self,
            [Prompt(videos, asked_of(question, videos, system))] * samples,
            max_new_tokens=generation.max_new_tokens,
            **dataclasses.asdict(sampling),
            stop=generation.stop,
            seeds=sample_seeds(generation.seed, samples),
            clock=clock,
        )
        return answer_of(self, videos, question, replies, clock)

    def stream(
        self,
        video: Videos,
        question: str,
        *,
        reducer: Method | None = None,
        ratio: float | None = None,
        fps: float | None = None,
        times: Sequence[float] | None = None,
        clock: StageClock | None = None,
        positions: PositionRule | None = None,
        system: str | None = None,
        **generating: Unpack[Generating],
    ) -> Stream:
        """Answers one question as the answer is written: `for piece in llm.stream(...)`.

        The video is read and reduced before this returns. All pieces together are the text that `ask` gives;
        `Stream.answer` is the whole answer behind the last piece.

        Args:
          video, question, reducer, ratio, fps, times, clock, positions, system, **generating: see `ask`.

        Raises:
          JvidpruneError: see `ask`.
        """
        generation = generation_of(self, generating)
        clock = clock or StageClock()
        videos = reduced_videos(self, video, question, reducer, ratio, fps, times, clock, positions)
        return Stream(self, videos, asked_of(question, videos, system), generation, clock, question)

    def chat(
        self,
        video: Videos = None,
        *,
        reducer: Method | None = None,
        ratio: float | None = None,
        question: str = "",
        system: str | None = None,
        reuse: bool = True,
    ) -> Chat:
        """A conversation of several rounds about the same videos, which are read and reduced here, once.

        Args:
          video, reducer, ratio, system: see `ask`.
          question: what methods that read one are given, in place of the questions to come.
          reuse: keep the cache between rounds; see `llm.chat.Chat`.

        Raises:
          JvidpruneError: what `encode` and `reduce` raise.
        """
        videos = reduced_videos(self, video, question, reducer, ratio, None, None, StageClock(), None)
        return Chat(self, videos, system=system, reuse=reuse)
