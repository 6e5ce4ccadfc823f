"""VideoLLaMA3: config, tower and name table; encoding is shared with the Qwen-VL models."""

from jvidprune.models.video_llama_3.config import VideoLlama3Config
from jvidprune.models.video_llama_3.config import VideoLlama3Config as Config
from jvidprune.models.video_llama_3.family import FAMILY
from jvidprune.models.video_llama_3.modules import VideoLlama3
from jvidprune.models.video_llama_3.modules import VideoLlama3 as Model
from jvidprune.models.video_llama_3.params import name_table
