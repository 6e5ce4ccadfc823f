"""InternVL3 and InternVL3.5: config, modules and name table."""

from jvidprune.models.internvl.config import InternVLConfig
from jvidprune.models.internvl.config import InternVLConfig as Config
from jvidprune.models.internvl.family import FAMILY
from jvidprune.models.internvl.modules import InternVL
from jvidprune.models.internvl.modules import InternVL as Model
from jvidprune.models.internvl.params import name_table
