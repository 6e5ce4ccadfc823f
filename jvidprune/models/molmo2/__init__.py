"""Molmo2: config, connector, modules and name table; tower and decoder are shared."""

from jvidprune.models.molmo2.config import Molmo2Config
from jvidprune.models.molmo2.config import Molmo2Config as Config
from jvidprune.models.molmo2.family import FAMILY
from jvidprune.models.molmo2.modules import Molmo2
from jvidprune.models.molmo2.modules import Molmo2 as Model
from jvidprune.models.molmo2.params import name_table
